"""The layering of the package: imports go down only, and libraries stay in the one file that owns them."""

import ast
import pathlib

import nuwaxl_jax

PACKAGE = pathlib.Path(nuwaxl_jax.__file__).parent

# The longest matching prefix decides. An import may stay on its layer or go down.
LAYERS = {
    "main": 6,
    "command_flags": 5,
    "training.loop": 5,
    "training.ahead": 5,
    "training.lineage": 5,
    "training.caching": 5,
    "training.checkpoint_command": 5,
    "training.initial": 5,
    "training.export": 5,
    "training.previews": 5,
    "evaluation.run": 5,
    "evaluation.features": 4,
    "evaluation.frechet": 0,
    "evaluation.intervals": 0,
    "evaluation.features.pickles": 0,
    "evaluation.stories": 5,
    "hierarchy.sample": 5,
    "cost": 5,
    "cost.topologies": 0,
    "cost.model_flops": 0,
    "training.tasks": 4,
    "training.vae_task": 4,
    "training.denoiser_task": 4,
    "training.latents": 4,
    "training.perceptual": 4,
    "training.steps": 4,
    "evaluation": 4,
    "importing": 4,
    "hierarchy": 4,
    "networks": 4,
    "weights": 4,
    "training": 3,
    "data.pipeline": 3,
    "models": 3,
    "models.layers": 2,
    "diffusion": 2,
    "data": 2,
    "partitioning": 1,
    "diffusion.gaussian": 1,
    "data.characters": 0,
    "data.intake": 1,
    "frames_io": 1,
    "video_io": 1,
    "config": 0,
    "config_rules": 0,
    "files": 0,
    "leaving": 0,
    "diffusion.schedules": 0,
    "hierarchy.plan": 0,
    "hierarchy.story": 0,
}
OWNERS = {
    "av": {"video_io"},
    "orbax": {"training.checkpoint"},
    "clu": {"training.metrics"},
    "tensorboardX": {"training.metrics"},
    "safetensors": {"weights", "importing.tensors", "data.clip_bpe"},
    "tokenizers": {"data.clip_bpe"},
    "h5py": {"data.intake.arldm"},
    "scenedetect": {"data.shots"},
    "cv2": set(),
    "array_record": {"data.cache.store", "data.prepared.write", "data.prepared.source"},
    "pickle": {"evaluation.features.pickles"},  # with a list of what it may name
    "absl": {"main", "command_flags", "data.pipeline"},
}
NEVER = {"cPickle", "dill", "joblib", "torch", "tensorflow"}


def _modules():
    for path in sorted(PACKAGE.rglob("*.py")):
        name = ".".join(path.relative_to(PACKAGE).with_suffix("").parts)
        yield name.removesuffix(".__init__"), ast.parse(path.read_text())


def _layer(name):
    parts = name.split(".")
    for end in range(len(parts), 0, -1):
        if ".".join(parts[:end]) in LAYERS:
            return LAYERS[".".join(parts[:end])]
    return 0


def _imports(tree):
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield alias.name
        elif isinstance(node, ast.ImportFrom):
            for alias in node.names:
                yield f"{node.module}.{alias.name}"


def _ours(name):
    return name.removeprefix("nuwaxl_jax.") if name.startswith("nuwaxl_jax.") else None


def test_imports_go_down_only():
    wrong = []
    for name, tree in _modules():
        for imported in _imports(tree):
            target = _ours(imported)
            if target and name not in ("__init__", "") and _layer(target) > _layer(name):
                wrong.append(f"{name} ({_layer(name)}) imports {target} ({_layer(target)})")
    assert not wrong, "\n".join(wrong)


def test_models_know_no_config_no_mesh_and_no_diffusion_and_diffusion_no_model():
    forbidden = {
        "models": ("config", "partitioning", "diffusion", "hierarchy", "training", "data"),
        "diffusion": ("config", "partitioning", "models", "hierarchy", "training", "data"),
    }
    wrong = [
        f"{name} imports {target}"
        for name, tree in _modules()
        for target in map(_ours, _imports(tree))
        if target and target.split(".")[0] in forbidden.get(name.split(".")[0], ())
    ]
    assert not wrong, "\n".join(wrong)


def test_libraries_have_one_home_and_some_have_none():
    wrong = []
    for name, tree in _modules():
        for imported in _imports(tree):
            library = imported.split(".")[0]
            if library in NEVER or (library in OWNERS and name not in OWNERS[library]):
                wrong.append(f"{name} imports {library}")
            if library == "grain" and not name.startswith("data."):
                wrong.append(f"{name} imports grain")
    assert not wrong, "\n".join(wrong)


def test_the_walk_sees_the_package():
    names = {name for name, _ in _modules()}
    assert {"main", "networks", "hierarchy.sample", "cost.programs", "diffusion.samplers", "models.mtd_unet"} <= names
