"""What the MAVIN configs share: which frames are noised, what the network is told, and what sampling begins with.

The paper's ablations are arguments of every config: noising=bert (BERT-style masking), variable=0 (gaps of one length), bfg=0 (no
boundary frame guidance), gfm=none, official3d or freeinit3d (the Gaussian filter mixer; `f0`, `decay`).
"""

from configs import defaults

ARMS = dict(noising="consecutive", variable=True, bfg=True, gfm="frame2d", f0=0.6, decay=0.1)


def noising(args, start, end, sample):
    """`start` and `end` of the gap: ranges to train on; `sample`: the usual one."""
    kind = defaults.choose(dict(consecutive="Consecutive", bert="Scattered"), args["noising"], "noising")
    target = dict(target=f"magvid.diffusion.mavin:{kind}", sample=sample)
    if kind == "Scattered":
        return target
    ranges = dict(start=start, end=end) if args["variable"] else dict(start=[sample[0]] * 2, end=[sample[1]] * 2)
    return target | ranges


def mixer(args, level=999):
    """The Gaussian filter mixer."""
    f0, decay = args["f0"], args["decay"]
    forms = {
        "frame2d": dict(target="magvid.diffusion.mavin:FrameMixer", cutoff=f0, decay=decay, level=level),
        "official3d": dict(target="magvid.diffusion.mavin:ReleasedMixer", cutoff=f0, decay=decay, level=level),
        "freeinit3d": dict(target="magvid.diffusion.mavin:FreeInit", space=f0, time=f0, level=level),
        "none": None,
    }
    return defaults.choose(forms, args["gfm"], "gfm")


def conditioners(args, text, vision, prepare, length, ends=("before", "after")):
    """Text, boundary frames, and how many frames the gap has (`length`: where nothing else is said)."""
    told = [dict(target="magvid.models.conditioners:TextTokens", text=text)]
    if args["bfg"]:
        told.append(dict(target="magvid.models.conditioners:BoundaryTokens", vision=vision, prepare=prepare, ends=ends))
    return [*told, dict(target="magvid.models.conditioners:Scalars", values=dict(length=length))]


def told(args):
    """The names of what is told in words and pictures; they are dropped together, so that guidance has a null to lead away from."""
    return ["text", "image"] if args["bfg"] else ["text"]
