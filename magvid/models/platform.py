"""One function in the form that suits the platform that a program is lowered for.

`lax.platform_dependent` picks the form at lowering, so that compiling for a TPU on a CPU host gives the TPU's form.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import lax


def per_platform(default: Callable, **forms: Callable) -> Callable:
    """f(*arrays) that is lowered as forms["cpu" | "cuda" | "tpu"] on that platform and as `default` elsewhere.

    The gradient (with respect to arrays of floats) is written out because differentiating through `platform_dependent`
    would keep the residuals of every form: the backward pass computes the form's own forward pass again.
    """

    @jax.custom_vjp
    def apply(*args):
        return lax.platform_dependent(*args, default=default, **forms)

    def forward(*args):
        return apply(*args), args

    def backward(args, g):
        floats = [i for i, a in enumerate(args) if jnp.issubdtype(a.dtype, jnp.inexact)]

        def pullback(form):
            def gradients(g, *args):
                def of_floats(*xs):
                    every = list(args)
                    for i, x in zip(floats, xs):
                        every[i] = x
                    return form(*every)

                return jax.vjp(of_floats, *(args[i] for i in floats))[1](g)

            return gradients

        pullbacks = {platform: pullback(form) for platform, form in forms.items()}
        grads = lax.platform_dependent(g, *args, default=pullback(default), **pullbacks)
        of = dict(zip(floats, grads))
        return tuple(of.get(i) for i in range(len(args)))

    apply.defvjp(forward, backward)
    return apply
