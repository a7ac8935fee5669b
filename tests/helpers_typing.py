"""The run-time check of signatures: shapes and dtypes in their annotations hold in every call of every test."""

from beartype import BeartypeConf, beartype

checked = beartype(conf=BeartypeConf(is_pep484_tower=True))  # an int is a float
