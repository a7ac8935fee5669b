"""MagDiff (Zhao et al., ECCV 2024, arXiv 2311.17338): pictures of an entity and a text -> a video of it, or a video with a part made anew.

    magvid train --config=configs/magdiff_pexels.py --workdir=runs/magdiff
    magvid compose --entity dog.png --prompt="a dog runs on the beach" --run=runs/magdiff --out=dog.mp4
    magvid edit car.mp4 --mask=masks --prompt="a red bus on a road" --run=runs/magdiff --out=bus.mp4

This module is what the configs of all data share. Converted weights of Stable Diffusion 2.1 are expected in weights/sd21v/{unet,vae} (`base`; the
768-pixel model, which predicts v) and weights/sd21/text (`text`), OpenCLIP ViT-H/14's image tower in weights/svd/vision (`vision`);
docs/diffusion.md says how, and tools/convert_resampler.py. Evaluated are, beside the metrics of every run, CLIP's scores by both towers of
weights/clip-l (`clip`; clip=, with nothing behind it: none), FVD and KVD with i3d=FILE, the Inception Score with c3d=FILE, LPIPS
with lpips=FILE, and whether it is the subject that was told with dino=FILE (docs/metrics.md). Trained are, as released, the layers between frames, all transformer blocks and the first convolution (591 million
parameters), the resampler of the image's tokens and the pyramid's convolutions; tune=full: the whole U-Net.

Its choices and the paper's ablations are arguments: segmented=0 (whole frames in place of subjects: no subject-driven alignment); apa=joint (text
and picture in one softmax) or none (no picture is read by attention); rep=256 (the released form: one size), none (no latents are joined) or
other sizes in pixels, the largest first, the clip's own last; repeat=0 (as released: frames without a picture are told black, not the last picture before them); refs: pictures of an entity at most, `least` at least. editing: share of the
clips that teach to edit; pictures: of so many batches one is of single frames (0: none). references=FOLDER: entities are told by pictures of their own in it, with transparency
around them, cats/a.png or cats/a/*.png of cats/a.mp4, not by the clips' subjects; with editing=0 there need be no masks. prediction=eps: noise is predicted, with the
plain schedule (then with base=weights/sd21). release=1: as the released code, but for what docs/magdiff.md says: norms over the clip, positions that
stay, scales 1 and 1.5, black pictures read like others, blue for red, one size, eps; it begins with weights/magdiff/{unet,resampler} (`weights`), and with
tune= (nothing) samples with them. smoke=1: two steps of tiny layers on sprites; the other weights are those of `base`, `text` and `vision`.
"""

from ml_collections import ConfigDict

from configs import clip_sprites, defaults, latent, unets

ARMS = dict(segmented=True, apa="epaf", rep="384+320+256", repeat=True, refs=8, least=1, editing=0.3)
RELEASED = dict(apa="epaf", rep="256", repeat=False, refs=1, least=1, editing=0.0, pictures=0, prediction="eps")
QUIET = dict(factory="magvid.adapters.magdiff:EPAF", scales=(1.0, 0.0))  # text alone at first: Stable Diffusion
CARRIED = 4  # frames that the windows of a long video share


def layers(args):
    """The fields of the U-Net: as released, or so that it begins as Stable Diffusion."""
    spec = dict(unets.magdiff)
    attention = dict(spec["attention"], tokens=("text", "image"))
    if not args["release"]:
        spec |= dict(clip_norm=False)
        attention |= dict(position_stays=False, cross_attention=QUIET)
    if args["apa"] != "epaf":
        del attention["cross_attention"]
        attention |= dict(tokens=("text", "image") if args["apa"] == "joint" else ("text",))
    return spec | dict(attention=attention)


def levels(args):
    """Sizes of the entity's pictures in units of the clip's; () where their latents are not joined."""
    sizes = [] if args["rep"] == "none" else [int(size) for size in args["rep"].split("+")]
    return [size / sizes[-1] for size in sizes]


def conditioners(args, vae, vision, text, prepare, resampler):
    """Text, the tokens of the entity's pictures, and their latents."""
    told = [dict(target="magvid.models.conditioners:TextTokens", text=text)]
    if args["apa"] != "none":
        tokens = dict(vision=vision, resampler=resampler, prepare=prepare, **(dict(count_all=True, bgr=True) if args["release"] else {}))
        told.append(dict(target="magvid.adapters.magdiff:EntityTokens", **tokens))
    if sizes := levels(args):
        pyramid = dict(target="magvid.adapters.magdiff:Pyramid")
        told.append(dict(target="magvid.adapters.magdiff:EntityLatents", vae=vae, pyramid=pyramid, levels=sizes, repeat=args["repeat"]))
    return told


def trained(args):
    """Groups: the network, and what stands before it."""
    return ("network", *(["resampler"] if args["apa"] != "none" else []), *(["pyramid"] if len(levels(args)) > 1 else []))


def dropped(args):
    """What is hidden in training: so each has its null, and both together."""
    if args["release"]:
        return [[["text"], 0.15]]
    return [[["text"], 0.1], [["image"], 0.1], [["text", "image"], 0.05]]


def guidance(args, image, text):
    """Weights of the pictures and of the text; the released code leads away from no picture."""
    return [[["text"], text]] if args["release"] else [[["text", "image"], image], [["text"], text]]


def noise(args):
    """Schedule and prediction: v with zero terminal SNR, or the noise without."""
    spec = dict(target="magvid.diffusion.schedules:Discrete")
    if args["prediction"] == "eps":
        return dict(schedule=spec | dict(clean_end=False), prediction=dict(target="magvid.diffusion.predictions:Eps"))
    trailing = dict(factory="magvid.diffusion.schedules:trailing")
    return dict(schedule=spec | dict(zero_snr=True, spacing=trailing), prediction=dict(target="magvid.diffusion.predictions:V"))


def entities(args, size, editing=None, **options):
    """The transform that makes an entity's pictures of clips and masks, and the clips `size` (h, w)."""
    larger = dict(size=size) if levels(args)[:1] not in ([], [1.0]) else {}
    references = [min(args["least"], args["refs"]), args["refs"]]
    own = dict(references=references, editing=args["editing"] if editing is None else editing, segmented=args["segmented"])
    own |= dict(first=True) if args["release"] else {}
    return dict(target="magvid.data.entities:Entities", **own | larger | options)


def checked(args):
    defaults.choose(dict(epaf=1, joint=1, none=1), args["apa"], "apa")
    defaults.choose(dict(v=1, eps=1), args["prediction"], "prediction")
    defaults.within(args, refs=(1, 1000), least=(1, 1000), editing=(0, 1), pictures=(0, 10**5))
    if args["pictures"] == 1:
        raise ValueError("pictures=1: of so many batches one is of pictures, so at least 2; 0: none")
    if args["rep"] != "none" and not all(size.isdigit() and int(size) for size in args["rep"].split("+")):
        raise ValueError(f'the config argument rep="{args["rep"]}": sizes in pixels such as 384+320+256, or none')
    if (sizes := levels(args)) != sorted(set(sizes), reverse=True):
        raise ValueError(f"the config argument rep=\"{args['rep']}\": the largest size first, the clip's own last, no size twice")
    if args.get("references") and not args["segmented"]:
        raise ValueError("segmented=0 tells whole frames, and references pictures of entities alone: leave one of them out")
    if args["apa"] == args["rep"] == "none":
        raise ValueError("apa=none with rep=none tells nothing of an entity: leave one of them")
    return args


def published(arg, test=None, folder="", key="text", editing=0.0):
    """The config of one evaluation: training is the same for all, on a folder of videos with masks beside them (`folder_of`). `test`(t, h, w, folder)
    makes the clips to evaluate on, of which `key` is the text, out of `folder`; editing: which share of them is edited. None: held-out videos
    of the training's.
    """
    args = parse(arg, folder)
    clip = [args["frames"], args["height"], args["width"]]
    config = ConfigDict(dict(seed=0, objective=objective(args, clip), data=dataset(args, clip, test, key, editing)))
    scores = dict(target="magvid.metrics.clip:ClipText", clip=latent.converted(args["clip"], "float32"))
    fidelity = dict(target="magvid.metrics.dino:SubjectFidelity", net=dict(target="magvid.models.dino:DINO", weights_file=args["dino"]))
    if metrics := [*([scores] if args["clip"] and not args["smoke"] else []), *defaults.measured(args), *([fidelity] if args["dino"] else [])]:
        config.metrics = metrics
    config = latent.tune(config, args, ways=("", "subset", "full"), subset=unets.MAGDIFF_TRAINED)
    if args["tune"]:
        config.optim = {name: optimiser(args, name) for name in trained(args)}
        config.init = [] if args["smoke"] else begins(args)
    return config


def optimiser(args, group):
    """As released: the same rate from the 100th step on."""
    schedule = dict(peak=5e-5, warmup=1 if args["smoke"] else 100, decay="constant")
    some = group == "network" and args["tune"] == "subset"
    rules = [[unets.MAGDIFF_TRAINED, schedule], [".*", None]] if some else [[".*", schedule]]
    return defaults.adamw(5e-5, 0, b2=0.999, weight_decay=0.01) | dict(rules=rules)


def begins(args):
    """With Stable Diffusion, whose first convolution reads no entity; or with the released weights."""
    if args["release"]:
        return [dict(run=f"{args['weights']}/{part}", groups=[group], weights="params") for part, group in (("unet", "network"), ("resampler", "resampler"))]
    begun = dict(map="magvid.adapters.magdiff:begun", skip=[unets.MAGDIFF_NEW])
    return [dict(run=f"{args['base']}/unet", groups=["network"], weights="params", **begun)]


def parse(arg, folder):
    """The arguments, checked, with what release=1 says."""
    args = latent.parse(
        arg, base="weights/sd21v", text="weights/sd21/text", vision="weights/svd/vision", clip="weights/clip-l", weights="weights/magdiff", frames=16, height=256,
        width=256, prediction="v", release=False, pictures=0, test="", references="", dino="", **ARMS, **defaults.MEASURES,
    )  # fmt: skip
    explicit = dict(item.partition("=")[::2] for item in filter(None, (arg or "").split(",")))
    args |= {} if "tune" in explicit else dict(tune="subset")
    args |= {} if "data" in explicit else dict(data="data/pexels")
    args |= {} if "test" in explicit else dict(test=folder)
    if args["release"] and (set_too := sorted(set(RELEASED) & set(explicit))):
        raise ValueError(f"release=1 says what {', '.join(set_too)} is: leave {'it' if len(set_too) == 1 else 'them'} out")
    return checked(args | (RELEASED if args["release"] else {}))


def objective(args, clip):
    """Of clips (t h w)."""
    tower = lambda folder: latent.converted(folder, args["dtype"])
    vae, spec = tower(f"{args['base']}/vae"), layers(args)
    kind = {} if args["dtype"] == "float32" else dict(dtype=args["dtype"])
    resampler = dict(target="magvid.adapters.magdiff:Resampler", **kind)
    if args["smoke"]:
        resampler |= dict(width=32, depth=1, heads=2, head_dim=8, queries=4, out=32)
    network = dict(target="magvid.models.unet:UNet", **spec) | (latent.TINY if args["smoke"] else dict(dtype=args["dtype"], remat=True))
    if not args["tune"]:
        network = latent.converted(f"{args['weights']}/unet", args["dtype"])
        resampler = latent.converted(f"{args['weights']}/resampler", args["dtype"])
    return dict(
        target="magvid.objectives.denoise:Denoise",
        network=network,
        vae=vae,
        conditioners=conditioners(args, vae, tower(args["vision"]), tower(args["text"]), dict(factory="magvid.models.clip:prepare"), resampler),
        **noise(args),
        drop=dropped(args),
        trained=trained(args),
        tasks=dict(S2V=()),
        sampling=dict(
            target="magvid.objectives.denoise:Sampling",
            sampler=dict(target="magvid.diffusion.samplers:DDIM"),
            steps=2 if args["smoke"] else 50,
            guidance=guidance(args, 1.5, 7.5),
        ),
        clip=clip,
        carried=min(CARRIED, clip[0] - 1),
    )


def dataset(args, clip, test, key, editing):
    """Clips with pictures of an entity, and the ids of their texts; and batches of single frames of them."""
    smoke, (t, *size) = args["smoke"], clip
    tokenizer = clip_sprites.TOKENIZER if smoke else dict(target="magvid.data.text:HFTokenizer", folder=f"{args['text']}/tokenizer")
    larger = [round(side * max(levels(args), default=1)) for side in size]
    own_pictures = dict(pictures=args["references"], **({} if args["editing"] else dict(masks=None))) if args["references"] else {}
    clips = lambda split, t: sprites(t, *larger) if smoke else folder_of(split, t, *larger, args["data"]) | own_pictures
    told, text = [entities(args, size)], [*latent.captions(args), dict(tokenizer, key="caption" if smoke else "text")]
    learned = [*told, *text]
    source, after = clips("train", t), learned
    if args["views"]:  # what changes a video belongs to its views
        source, after = latent.viewed(args, source, args["views"], told), text
    data = dict(train=dict(source=source, transforms=after, workers=0))
    if args["pictures"]:
        one = [dict(target="magvid.data.pipeline:Frames", indices=[0])] if smoke else []
        several = dict(batch=2 * t if smoke else 16 * t, every=args["pictures"])
        data["pictures"] = dict(source=clips("train", t if smoke else 1), transforms=[*one, *learned], workers=0, **several)
    own = smoke or test is None
    source = clips("validation", t) if own else test(t, *larger, args["test"])
    shown = [entities(args, size, editing, **({"stays": True} if editing else {})), *(text if own else [dict(tokenizer, key=key)])]
    return data | dict(eval=dict(source=source, transforms=shown, limit=64))


def folder_of(split, frames, height, width, path):
    """Videos, their texts in captions.jsonl beside them, their masks in `masks`, as tools/segment.py writes them; a video that lacks either is left out."""
    size = dict(frames=frames, height=height, width=width, fps=8)
    return dict(target="magvid.data.folder:VideoFolder", path=path, masks=f"{path}/masks", captioned=True, split=split, **size)


def sprites(frames, height, width):
    """For smoke=1."""
    size = dict(frames=max(frames, 4), height=height, width=width)
    return dict(target="magvid.data.sprites:Sprites", world="small", keys=("video", "label", "caption", "masks"), **size)
