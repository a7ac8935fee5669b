"""Renaming of parameters by ordered rules, strict in both directions. Conversion is pure: dict of names -> dict of
names.
"""

import re
from collections.abc import Mapping, Sequence

import numpy as np

Rule = tuple[str, str]  # (regex of the whole source name, replacement)


def rename(flat: Mapping[str, np.ndarray], rules: Sequence[Rule]) -> dict[str, np.ndarray]:
    """Every source name is rewritten by the first rule that matches it whole.

    Raises ValueError that lists the names no rule takes, and names that two sources would fill.
    """
    renamed, homeless = {}, []
    for name, value in flat.items():
        target = next((re.sub(regex, new, name) for regex, new in rules if re.fullmatch(regex, name)), None)
        if target is None:
            homeless.append(name)
        elif target in renamed:
            raise ValueError(f'two source parameters become "{target}"; the second is "{name}"')
        else:
            renamed[target] = value
    if homeless:
        raise ValueError(
            f"no rule takes {len(homeless)} source parameters: {', '.join(homeless[:10])}; "
            "is this the right tool for the file?"
        )
    return renamed
