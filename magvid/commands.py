"""The commands of `magvid` and their flags."""

from magvid.flags import Flag, Program

SEED = Flag("seed", "int", 0, "N", "seed of all random choices; equal seeds give equal videos", 0)
RUN = [
    Flag("run", "str", None, "FOLDER", "a folder that `magvid train` has written"),
    Flag("weights", "str", None, "ema|params", "averaged or last weights; default: averaged where there are any"),
]
TRUST = Flag("trust", "bool", False, "", "let the config of a run name code outside of magvid")

CONFIG = Flag("config", "str", None, "FILE.py[:ARG]", "a config file, and an argument for its get_config; as the first word of a command it needs no --config=")

# Of several commands that make videos
NEGATIVE = Flag("negative", "str", None, "TEXT", "what guidance leads away from; default: the empty text")
VIDEO_OUT = Flag("out", "str", None, "FILE", "where to write: *.mp4, *.webm or *.gif")
STEPS = Flag("steps", "int", None, "N", "denoising steps; default: as the run's config", 1)
BY_TEXT = Flag("guidance", "float", None, "G", "by the text; default: as the run's config", 0)
NUMBER = Flag("number", "int", 1, "N", "of videos", 1)
FRAMES = Flag("frames", "int", None, "N", "length of the result; beyond a clip window by window; default: a clip", 2)
SCALE = Flag("scale", "int", 1, "N", "enlarge N times", 1)
CONVERTED = CONFIG._replace(help="in place of --run: a config that trains nothing, with converted weights")

COMMANDS = {
    "train": Program(
        "magvid train",
        "Train what a config describes, or go on with a run that was interrupted.",
        [
            CONFIG,
            Flag("workdir", "str", None, "FOLDER", "the run folder: new, or one to go on with"),
            Flag("distributed", "bool", False, "", "one of several processes, which the cluster knows: Cloud TPU, SLURM, Open MPI, Kubernetes"),
            Flag("coordinator", "str", None, "HOST:PORT", "or by hand: where process 0 listens"),
            Flag("processes", "int", None, "N", "how many there are", 1),
            Flag("process", "int", None, "I", "which one this is, from 0", 0),
            Flag("profile", "str", None, "FIRST-LAST", "steps of which a trace is written to the run folder, such as 20-24"),
            TRUST,
        ],
        [
            "--config=configs/vq3d_sprites.py --workdir=runs/vq",
            "--config=configs/vq3d_sprites.py --workdir=runs/vq --config.steps=20000",
        ],
        "--config.batch=16",
    ),
    "explain": Program(
        "magvid explain",
        "Say what a config would need on so many devices, before anything is read or compiled: parameters, FLOPs, memory, data.",
        [
            CONFIG,
            Flag("devices", "int", None, "N", "how many; the config's mesh must fit them; default: as few as it fits", 1),
            Flag("depth", "int", 1, "N", "of the module tree that is shown; 9: down to the arrays", 0),
        ],
        ["--config=configs/commit_ucf101.py:size=L --devices=256", "--config=configs/aid_bridge.py --devices=8 --depth=9"],
        "--config.batch=64",
    ),
    "compile": Program(
        "magvid compile",
        "Compile the training step of a config for a TPU pod without one, or for the devices here, and say what a chip holds and does.",
        [
            CONFIG,
            Flag("topology", "str", "local", "NAME", "such as v5e:16x16, v5p:4x4x4, v6e:16x16; cpu:8; local: the devices here"),
            Flag("chips", "int", 0, "N", "of the topology; default: all", 0),
            Flag("effort", "float", 0.0, "X", "of the compiler, -1 to 1; -1 takes less long", -1),
            Flag("steps", "int", 0, "N", "local: also time so many steps, on random numbers", 0),
        ],
        ["--config=configs/commit_ucf101.py:size=L --topology=v5e:16x16", "--config=configs/aid_bridge.py --topology=v5p:2x2x1 --chips=1"],
        "--config.batch=64",
    ),
    "encode": Program(
        "magvid encode",
        "Encode a data set once with the frozen tokenizer or autoencoder of a config: training reads tokens or latents, not videos.",
        [
            CONFIG,
            Flag("out", "str", None, "FOLDER", "where to write: new, or one to go on with"),
            Flag("split", "str", "train", "train|eval", "which data of the config"),
            Flag("rows", "int", None, "N", "rows of a shard, a clip and view each; default: 4096 or 256 MB, or as those there", 1),
            Flag("batch", "int", None, "N", "clips at a time; default: as in training", 1),
            Flag("features", "str", None, "all|TOWERS", "with latents, keep what frozen towers, such as text,vision, say of texts and pictures"),
            TRUST,
        ],
        [
            "--config=configs/commit_sprites.py:clips=20000 --out=runs/tokens",
            "--config=configs/commit_ucf101.py:views=8 --out=runs/tokens --rows=2048",
            "--config=configs/svd.py:tune=lora,data=videos,views=4 --out=runs/svd-latents",
            "--config=configs/aid_bridge.py:views=1 --out=runs/bridge-latents --features=all",
        ],
        "--config.data.train.workers=4",
    ),
    "sample": Program(
        "magvid sample",
        "Generate videos with a trained run, or as a config says with public weights, from a prompt, a picture, a video or "
        "the run's evaluation clips.",
        [
            *RUN,
            CONFIG._replace(help="in place of --run: a config that trains nothing, such as configs/svd.py"),
            Flag(
                "task",
                "str",
                None,
                "NAME[,NAME]",
                "FP FI OPC OPV OPH OPD IPC IPD CG CFP, FP5 (5 frames given), of diffusion T2V I2V TI2V V, TVI (infilling); default: all of "
                "the run",
            ),
            Flag("prompt", "str", None, "TEXT", "what to show, in words"),
            NEGATIVE,
            Flag("image", "str", None, "FILE", "the first frame"),
            Flag("video", "str", None, "FILE", "take the condition from this video; default: evaluation clips"),
            Flag("start", "float", 0.0, "SECONDS", "skip so much of the video", 0),
            Flag(
                "fps",
                "float",
                None,
                "RATE",
                "read the video at this rate, or write what comes of a picture or prompt; default: as the run's data, or the "
                "file's own",
            ),
            Flag("index", "int", 0, "N", "the first evaluation clip; of a class alone: the first sample", 0),
            Flag("number", "int", None, "N", "evaluation clips, or samples for the video; default: 4", 1),
            Flag("label", "str", None, "ID|NAME", "the class to generate; default: the clip's own"),
            Flag(
                "size", "str", None, "HxW", "of the video or picture, cut and resized (not COMMIT); default: as the run's clips"
            ),
            Flag(
                "frames", "int", None, "N", "length: of FP, CFP, I2V any, window by window; of a tokenizer's video, T2V any", 1
            ),
            Flag("overlap", "int", None, "N", "frames that the windows share; default: as the run's config", 1),
            Flag("steps", "int", None, "N", "decoding or denoising steps; default: as the run's config", 1),
            Flag("temperature", "float", None, "T", "of the decoding; default: as the run's config", 0),
            Flag(
                "schedule", "str", None, "NAME", "of masking: cosine uniform power2 logarithmic exponential; default: as above"
            ),
            Flag("guidance", "float", None, "G", "classifier-free; see objective.condition_drop; default: as above", 0),
            Flag("intermediates", "bool", False, "", "also draw the decoding steps, a picture per sample"),
            SEED,
            Flag("out", "str", None, "FOLDER", "where to write; default: RUN/samples, of a config samples/NAME-NUMBER"),
            Flag("format", "str", None, "mp4|gif|webm|png", "of the files; default: png of images (videos of one frame), else mp4"),
            Flag("scale", "int", 0, "N", "enlarge N times; default: to at least 128 pixels; 1: as they are", 0),
            TRUST,
        ],
        [
            "--run=runs/magvit --task=FP --number=8",
            "--run=runs/magvit --task=CFP --video=a.mp4 --label=3 --out=out",
            "--run=runs/magvit --task=FP5 --frames=64 --overlap=5",
            "--run=runs/vq --video=a.mp4 --size=96x160 --frames=40",
            "--config=configs/svd.py --image=a.png --number=1",
            '--config=configs/modelscope.py --prompt="a panda eats bamboo on a rock"',
        ],
        "--config.objective.decoding.steps=24",
    ),
    "connect": Program(
        "magvid connect",
        "Join clips into one video: the transitions between them are made by a run that fills gaps (MAVIN).",
        [
            Flag("clips", "files", (), "FILE FILE [FILE ...]", "two or more videos of any size and rate"),
            *RUN,
            CONVERTED,
            VIDEO_OUT,
            Flag(
                "refine", "str", None, "N,N",
                "frames at the end of a clip and the beginning of the next that are made anew, or a pair per join; default: half of the run's usual "
                "gap each, of the paper's 6,6"
            ),
            Flag("prompt", "str", None, "TEXT[|TEXT]", "what happens, in words: one text, one per join, or one per clip; default: as trained"),
            NEGATIVE,
            Flag("actions", "str", None, "FOLDER", "a run that makes the clips itself, one for each action in --prompt, from --image"),
            Flag("image", "str", None, "FILE[,FILE]", "the first frame of all actions, or one for each"),
            Flag("fps", "float", None, "RATE", "read all clips at this rate, and write it; default: as the run's data, or 8"),
            Flag("size", "str", None, "HxW", "of the result; default: as the run's clips"),
            STEPS,
            Flag("guidance", "float", None, "G", "classifier-free; default: as the run's config", 0),
            SEED,
            TRUST,
        ],
        [
            "a.mp4 b.mp4 c.mp4 --run=runs/mavin --refine=6,6 --out=all.mp4",
            'walk.mp4 eat.mp4 --run=runs/mavin --prompt="a horse walks|a horse eats" --out=horse.mp4',
            '--run=runs/mavin --actions=runs/mavin-action --image=horse.png --prompt="run|jump|eat" --out=script.mp4',
        ],
        "--config.objective.sampling.mixer.cutoff=0.4",
    ),
    "predict": Program(
        "magvid predict",
        "Go on from a picture, or the beginning of a video, as an instruction says: with a run of AID's adapters.",
        [
            Flag("file", "files", (), "FILE", "a picture, or a video whose beginning is given"),
            *RUN,
            CONFIG._replace(help="in place of --run: the config that --adapters were trained with"),
            Flag("instruction", "str", None, "TEXT", "what shall happen"),
            Flag("states", "str", None, "TEXT|TEXT...|FILE.json", "predicted states of the scene, as many as the run reads; or a file of tools/predict_states.py"),
            Flag("adapters", "str", None, "FILE[:N][,FILE[:N]]", "of `magvid export`, in place of what the run trained; of several the mean, weighted"),
            NEGATIVE,
            VIDEO_OUT,
            FRAMES,
            NUMBER,
            Flag("start", "float", 0.0, "SECONDS", "skip so much of a video", 0),
            Flag("fps", "float", None, "RATE", "read a video, or write what comes of a picture, at this rate; default: as the run's data"),
            Flag("size", "str", None, "HxW", "cut and resized to; default: as the run's clips"),
            STEPS,
            BY_TEXT,
            Flag("image_guidance", "float", None, "G", "by what is shown (of the last frame, where it rises); default: as the run's config", 0),
            SCALE,
            SEED,
            TRUST,
        ],
        [
            'kitchen.jpg --run=runs/aid --instruction="put the pot on the stove" --states=states.json --out=pot.mp4',
            'a.mp4 --run=runs/aid --instruction="push the cup away" --states="a cup|a hand|a hand at the cup|a cup far away" --out=b.mp4',
            'a.png --config=configs/aid_bridge.py --adapters=a.safetensors:2,b.safetensors:1 --instruction="fold the cloth" --states=s.json --out=c.gif',
        ],
        "--config.objective.adapters.scale=0.5",
    ),
    "compose": Program(
        "magvid compose",
        "Make a video of what pictures show, in which happens what a text says: with a run of MagDiff.",
        [
            Flag("entity", "several", (), "FILE[,MASK]", "a picture with transparency around the subject, or with a mask, white on it; once for each picture"),
            Flag("prompt", "str", None, "TEXT", "what shall be seen"),
            *RUN,
            CONVERTED,
            NEGATIVE,
            VIDEO_OUT,
            FRAMES,
            NUMBER,
            Flag("fps", "float", None, "RATE", "at which it is written; default: as the run's data"),
            Flag("size", "str", None, "HxW", "of the result; default: as the run's clips"),
            STEPS,
            BY_TEXT,
            Flag("image_guidance", "float", None, "G", "by the pictures; default: as the run's config", 0),
            SCALE,
            SEED,
            TRUST,
        ],
        [
            '--entity dog.png --prompt="a dog runs on the beach" --run=runs/magdiff --out=dog.mp4',
            '--entity front.jpg,front-mask.png --entity side.jpg,side-mask.png --prompt="a toy car on a table" --run=runs/magdiff --out=car.mp4',
        ],
        "--config.objective.sampling.steps=25",
    ),
    "edit": Program(
        "magvid edit",
        "Make a part of a video anew, as a text says, and keep the rest: with a run of MagDiff.",
        [
            Flag("video", "files", (), "VIDEO", "of any length, size and rate"),
            Flag("mask", "str", None, "FILE|FOLDER", "white is made anew: a picture for all frames, a folder with 00000.png, 00001.png, ..., or a video"),
            Flag("prompt", "str", None, "TEXT", "what shall be seen"),
            *RUN,
            CONVERTED,
            NEGATIVE,
            VIDEO_OUT,
            Flag("start", "float", 0.0, "SECONDS", "skip so much of the video", 0),
            Flag("frames", "int", None, "N", "at most so many; default: all", 1),
            Flag("size", "str", None, "HxW", "cut and resized to; default: as the run's clips"),
            STEPS,
            BY_TEXT,
            Flag("image_guidance", "float", None, "G", "by what stays; default: as the run's config", 0),
            Flag("grow", "int", None, "PIXELS", "of the model's pictures, around the mask, are made anew as well: an edge shows some of what was; default: as trained", 0),
            Flag("paste", "bool", False, "", "copy the video's own pixels outside of the mask; default: as they come out of the autoencoder"),
            SCALE,
            SEED,
            TRUST,
        ],
        [
            'car.mp4 --mask=masks/car --prompt="a red bus on a road" --run=runs/magdiff --out=bus.mp4',
            'car.mp4 --mask=mask.png --prompt="a snowy road" --run=runs/magdiff --frames=32 --paste --out=snow.mp4',
        ],
        "--config.objective.sampling.steps=25",
    ),
    "export": Program(
        "magvid export",
        "Write what a run trained to one file: adapters or LoRA to load onto the network beside which they were trained, or a run to import elsewhere.",
        [*RUN, Flag("out", "str", None, "FILE.safetensors", "where to write"), Flag("dtype", "str", None, "float16", "half the size, rounded; default: bit for bit"), TRUST],
        ["--run=runs/aid --out=aid.safetensors", "--run=runs/vq --out=vq.safetensors", "--run=runs/vq --weights=ema --dtype=float16 --out=vq.safetensors"],
    ),
    "import": Program(
        "magvid import",
        "Make a run folder of a file that `magvid export` wrote: to sample, to evaluate, to build on.",
        [Flag("file", "files", (), "FILE.safetensors", "the file"), Flag("out", "str", None, "FOLDER", "where to write: new"), TRUST],
        ["vq.safetensors --out=runs/vq"],
    ),
    "evaluate": Program(
        "magvid evaluate",
        "Measure a trained run on held-out clips, its own or those of another config: a table, and RUN/evaluation.json.",
        [
            *RUN,
            Flag("tasks", "str", None, "NAME[,NAME]", "default: all of the run"),
            Flag("data", "str", None, "FILE.py[:ARG]", "another config, whose held-out clips and metrics take the place of the run's"),
            Flag("clips", "int", 200, "N", "how many held-out clips", 1),
            Flag("batch", "int", None, "N", "clips at a time; default: as the run's config", 1),
            Flag("best_of", "int", 1, "N", "samples per clip and task: adds the skill of the best", 1),
            SEED,
            Flag("out", "str", None, "FILE", "where to write; default: RUN/evaluation.json, of --data=a.py RUN/evaluation-a.json"),
            TRUST,
        ],
        ["--run=runs/vq", "--run=runs/magvit --tasks=FP,FI --clips=64 --best_of=16", "--run=runs/magdiff --data=configs/magdiff_msrvtt.py:test=MSRVTT"],
        "--config.data.eval.source.split=test",
    ),
}


def overview() -> str:
    """What `magvid --help` prints."""
    lines = ["magvid: conditional video generators in JAX", "", "usage: magvid COMMAND --flag=value ...", ""]
    lines += [f"  {name:<10}{program.text}" for name, program in COMMANDS.items()]
    lines += ["", "examples:"]
    lines += [f"  {program.name} {program.examples[0]}" for program in COMMANDS.values()]
    lines += [
        "",
        "`magvid COMMAND --help` lists its flags; `magvid --version` prints the version.",
        "`--debug` shows the traceback of an error.",
    ]
    return "\n".join(lines)
