"""What the configs of public latent diffusion models share: where weights come from, and what of them is trained."""

from configs import clip_sprites, clips, defaults, unets, vaes

# The smallest form, for smoke=1
TINY = dict(channels=(32, 64), layers=1, attention_levels=(True, False), heads=(2, 4), epsilon=1e-5)
# What the video models added to Stable Diffusion
TEMPORAL = "temporal_|time_mixer|time_pos_embed|temp_convs|temp_attentions|transformer_in"
LORA = "attn[12]/to_(q|k|v|out)"
TUNE = ("", "full", "lora", "temporal")
TOWERS = dict(
    sd15="clip_l_text", sd21="openclip_h_text", modelscope="openclip_h_text", mavin="clip_l_vision_projected", svd="openclip_h_vision",
    svd_xt="openclip_h_vision",
)  # fmt: skip
PARTS = ("unet", "vae", "text", "vision")
SMOKE = dict(frames=5, height=32, width=48, dtype="float32")


def parse(arg, **own):
    """The arguments of one pipeline (`own`) and those of all."""
    own = own | dict(tune="", model=1, data="data", views=0, dtype="bfloat16", smoke=False)
    args = defaults.parse_arg(arg, **own)
    defaults.choose(dict.fromkeys(("bfloat16", "float32", "float16")), args["dtype"], "dtype")
    # whole numbers begin at 1, or at 0 where that stands for something
    defaults.within(args, **{name: (min(default, 1), 10**5) for name, default in own.items() if type(default) is int})
    return args | SMOKE if args["smoke"] else args


def published(part, preset):
    """The spec of a public network: `part` unet, vae, text or vision of a preset of `unets`."""
    if part == "unet":
        return dict(target="magvid.models.unet:UNet", **unets.PRESETS[preset])
    return vaes.VAES["svd" if preset.startswith("svd") else "sd"] if part == "vae" else clips.TOWERS[TOWERS[preset]]


def converted(folder, dtype, **fields):
    """A network in a folder that tools/convert_*.py has written, weights/PRESET/PART. `dtype`: in which it computes."""
    where, _, part = folder.rpartition("/")
    preset = where.rpartition("/")[2]
    preset = "sd21" if preset == "sd21v" else preset
    known = dict(spec=published(part, preset)) if preset in unets.PRESETS and part in PARTS else {}
    return dict(run=folder, weights="params", fields=dict(fields, **({} if dtype == "float32" else dict(dtype=dtype))), **known)


def network(args, preset):
    """The U-Net: frozen with its published weights, or where it is trained, beginning with them (see `tune`)."""
    if args["tune"] in ("", "lora"):
        return converted(f"{args['weights']}/unet", args["dtype"], **(dict(remat=True) if args["tune"] else {}))
    return published("unet", preset) | (TINY if args["smoke"] else dict(dtype=args["dtype"], remat=True))


def told_text(args, preset, clip, guidance, prediction="Eps"):
    """The objective of Stable Diffusion and ModelScope: a text is told, timesteps, DDIM."""
    text = converted(f"{args['weights']}/text", args["dtype"])
    return dict(
        target="magvid.objectives.denoise:Denoise",
        network=network(args, preset),
        vae=converted(f"{args['weights']}/vae", args["dtype"]),
        conditioners=[dict(target="magvid.models.conditioners:TextTokens", text=text)],
        schedule=dict(target="magvid.diffusion.schedules:Discrete", clean_end=False),
        prediction=dict(target=f"magvid.diffusion.predictions:{prediction}"),
        drop=[[["text"], 0.1]],
        sampling=dict(
            target="magvid.objectives.denoise:Sampling",
            sampler=dict(target="magvid.diffusion.samplers:DDIM"),
            steps=2 if args["smoke"] else 50,
            guidance=[[["text"], guidance]],
        ),
        clip=clip,
    )


def tokenizer(args):
    """Of the text tower."""
    if args["smoke"]:
        return clip_sprites.TOKENIZER
    return dict(target="magvid.data.text:HFTokenizer", folder=f"{args['weights']}/text/tokenizer")


def videos(args, clip, fps, **options):
    """Training clips out of a folder (`data`); with views=N so many fixed ones of each file, whose latents can be kept."""
    t, h, w = clip
    folder = dict(target="magvid.data.folder:VideoFolder", path=args["data"], frames=t, height=h, width=w, fps=fps, **options)
    return viewed(args, sprites(t, h, w) if args["smoke"] else folder, args["views"])


def pictures(args, height, width):
    """The same of single pictures."""
    folder = dict(target="magvid.data.images:ImageFolder", path=args["data"], height=height, width=width)
    if args["smoke"]:
        first = [dict(target="magvid.data.pipeline:Frames", indices=[0])]
        return viewed(args, sprites(4, height, width), args["views"] or 1, first)
    return viewed(args, folder, args["views"])


def viewed(args, source, views, transforms=()):
    """The source; with views, so many of each clip."""
    clips = defaults.SMOKE_CLIPS if args["smoke"] else 0
    return defaults.views(source, views, clips, transforms) if views else source


def sprites(frames, height, width):
    """For smoke=1."""
    size = dict(frames=frames, height=height, width=width)
    return dict(target="magvid.data.sprites:Sprites", world="small", keys=("video", "label", "caption"), **size)


def captions(args):
    """The text of each file, from captions.jsonl beside them."""
    return [] if args["smoke"] else [dict(target="magvid.data.text:Captions", path=f"{args['data']}/captions.jsonl")]


def tune(config, args, ways=TUNE, subset=""):
    """tune= nothing: only to sample. full: the whole U-Net. temporal: what the video model added to Stable Diffusion. subset: what this
    regex finds. lora: thin matrices beside its attention (https://arxiv.org/abs/2106.09685). Trained weights are spread over all devices
    (FSDP), and with model=N the attention and feed-forwards over N of them.
    """
    how = defaults.choose({name: name for name in ways}, args["tune"], "tune")
    config.steps = 2 if args["smoke"] else 20000
    config.batch = 2 if args["smoke"] else 16
    config.microbatch = 1
    config.compiler_options = dict(tpu=defaults.NO_SPACE_TO_BATCH)
    config.optim = {}
    config.log_every = 1 if args["smoke"] else 20
    config.save_every = 1000
    config.keep = 2
    peak, warmup = 1e-5, 1 if args["smoke"] else 500
    if how == "lora":
        config.objective.lora = dict(target="magvid.lora:LoRA", regex=LORA, rank=16, alpha=16)
        config.optim = dict(lora=defaults.adamw(10 * peak, warmup, b2=0.999, weight_decay=0.01))
    elif how:
        optim = defaults.adamw(peak, warmup, b2=0.999, weight_decay=0.01)
        if how in ("temporal", "subset"):
            optim["rules"] = [[TEMPORAL if how == "temporal" else subset, optim["rules"][0][1]], [".*", None]]
        config.optim = dict(network=optim)
        config.ema = 0.9999
        config.sharding = [[".*", "fsdp"]]
        if args["model"] > 1:
            config.mesh = {"data": -1, "model": args["model"]}
            config.sharding = defaults.TENSOR
        if not args["smoke"]:
            config.init = [dict(run=f"{args['weights']}/unet", groups=["network"], weights="params")]
    return config
