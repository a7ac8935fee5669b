"""A GAN of three small matrices: generator and discriminator are trained, `features` is frozen. And clips made of
numbers.
"""

import dataclasses
import os
import time

import jax
import jax.numpy as jnp
import numpy as np


@dataclasses.dataclass(frozen=True)
class Clips:
    """Clip i is 2x4x4 noise from generator i; the environment's TEST_PAUSE slows reading (seconds) for tests that
    interrupt.
    """

    size: int = 64

    def __len__(self):
        return self.size

    def __getitem__(self, i):
        time.sleep(float(os.environ.get("TEST_PAUSE", 0)))
        rng = np.random.default_rng(i)
        return {"video": rng.integers(0, 256, (2, 4, 4, 3)).astype(np.uint8), "label": i % 4, "caption": f"clip {i}"}


@dataclasses.dataclass(frozen=True)
class Part:
    """A group with matrices enter/kernel (inputs, width), exit/kernel (width, outputs) and exit/bias."""

    inputs: int
    outputs: int
    width: int = 48

    def init(self, key):
        k1, k2 = jax.random.split(key)
        enter = {"kernel": jax.random.normal(k1, (self.inputs, self.width)) / self.inputs**0.5}
        exit_ = {
            "kernel": jax.random.normal(k2, (self.width, self.outputs)) / self.width**0.5,
            "bias": jnp.zeros(self.outputs),
        }
        return {"enter": enter, "exit": exit_}

    @staticmethod
    def apply(p, x):
        return jnp.tanh(x @ p["enter"]["kernel"]) @ p["exit"]["kernel"] + p["exit"]["bias"]


@dataclasses.dataclass(frozen=True)
class ToyGan:
    """`nan_at` makes the generator's loss NaN at that step, the record `bad` multiplies it by `fault`; `noise` is drawn from the step's key.
    The number `order` tells which clips a loader's batch has, and where, if `ordered`; it is of whole batches, not of microbatches.
    """

    generator: Part = Part(96, 96)
    discriminator: Part = Part(96, 1)
    features: Part = Part(96, 8)
    noise: float = 0.0
    nan_at: int = -1
    bad: int = -1
    fault: float = 1.0
    ordered: bool = False

    def init(self, key, batch):
        names = ("generator", "discriminator", "features")
        return {n: getattr(self, n).init(jax.random.fold_in(key, i)) for i, n in enumerate(names)}

    def init_extra(self):
        return {"real": jnp.zeros(())}

    def loss(self, params, extra, batch, key, step, train):
        x = batch["video"].reshape(len(batch["video"]), -1).astype(jnp.float32) / 255
        x = x.astype(params["generator"]["enter"]["kernel"].dtype)
        noisy = x + self.noise * jax.random.normal(key, x.shape, x.dtype)
        fake = Part.apply(params["generator"], noisy)
        feature = lambda v: Part.apply(params["features"], v)
        real_logit, fake_logit = Part.apply(params["discriminator"], x), Part.apply(params["discriminator"], fake)
        mse = jnp.mean((fake - x) ** 2)
        generator = mse + jnp.mean((feature(fake) - feature(x)) ** 2) + 0.1 * jnp.mean(jax.nn.softplus(-fake_logit))
        discriminator = jnp.mean(jax.nn.softplus(-real_logit)) + jnp.mean(jax.nn.softplus(fake_logit))
        generator = generator * jnp.where((step == self.nan_at) & train, jnp.nan, 1.0)
        if train and self.bad >= 0:
            generator = generator * jnp.where(jnp.any(batch["index"] == self.bad), self.fault, 1.0)
        extra = {"real": 0.9 * extra["real"] + 0.1 * jnp.mean(real_logit).astype(jnp.float32)}
        losses = {"generator": generator, "discriminator": discriminator, "features": mse}
        metrics = {"mse": mse}
        if self.ordered:
            metrics["order"] = jnp.sum(batch["index"] * (1.0 + jnp.arange(len(x))))
        return losses, (metrics, extra)


def config(total=None, **changes):
    """20 steps of the toy, saved at step 10 and 20; some leaves of the discriminator and of `features` are frozen by
    rules.
    """
    peak = dict(peak=1e-2, warmup=2, total=total)
    optimizer = dict(name="adamw", b1=0.9, b2=0.99, weight_decay=0.01)
    base = dict(
        seed=0,
        steps=20,
        batch=8,
        objective=dict(target="helpers_objective:ToyGan", noise=0.1),
        data=dict(
            train=dict(source=dict(target="helpers_objective:Clips"), transforms=[]),
            eval=dict(source=dict(target="helpers_objective:Clips", size=20), limit=20),
        ),
        optim=dict(
            generator=dict(optimizer=optimizer, rules=[(".*", peak)], clip=1.0),
            discriminator=dict(
                optimizer=dict(name="adam", b1=0.0), rules=[("bias", None), (".*", dict(peak=1e-3, decay="constant"))]
            ),
            features=dict(optimizer=optimizer, rules=[("enter", None), (".*", peak)]),
        ),
        ema=0.9,
        ema_groups=["generator"],
        log_every=5,
        save_every=10,
        eval_every=10,
    )
    return {**base, **changes}


def frequent():
    """20 steps with a checkpoint every second one; the numbers of every step are logged."""
    return config(save_every=2, log_every=1, eval_every=0, keep=20)


SPREAD = dict(
    objective=dict(target="helpers_objective:ToyGan", noise=0.1, ordered=True),
    sharding=[("enter/kernel", "fsdp"), (".*", None)],
    save_every=2,
    log_every=1,
    eval_every=5,
)
