"""Run disentanglement_lib's own code on our drawing of dSprites, and write what it learns to `reproduction.json`.

    python -m tests.benchmarks.reproduction_reference prepare FOLDER
    python tests/benchmarks/reproduction_reference.py train FOLDER beta_vae 0 [--steps 1500]
    python -m tests.benchmarks.reproduction_reference collect FOLDER

`train` needs an environment of its own, without raydis: tensorflow-cpu, tf-keras, gin-config, numpy, scikit-learn, and
disentanglement-lib 1.5 installed without its dependencies. That package is of 2019 and was written for TensorFlow 1.
Its networks, losses, regularisers and optimisers run unchanged in TensorFlow 2's compatibility mode. We replace what is
around them: the loop of steps, in which we draw each batch uniformly with replacement as it does, modules that are gone
from TensorFlow and that training does not use (tpu, hub, estimator, probability), and two renamed arguments of gin.

Its FactorVAE counts two steps for each batch, one for each optimiser, so that its 300,000 steps are 150,000 batches.
Here a step is a batch.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import sys
import time
import types
from collections import namedtuple
from pathlib import Path
from typing import Any

import numpy as np

BATCH_SIZE, NUM_UNITS = 64, 10
WINDOW = 50  # steps over which losses are averaged
SCORED_STEPS = 250  # between two encodings
CLASSES = {"beta_vae": "BetaVAE", "beta_tcvae": "BetaTCVAE", "factor_vae": "FactorVAE"}
STRENGTHS = {"beta_vae": "vae.beta = 4.", "beta_tcvae": "beta_tc_vae.beta = 6.", "factor_vae": "factor_vae.gamma = 35."}


# ---- in raydis's environment


def prepare(folder: Path) -> None:
    """Draw all images, and list those whose codes are scored."""
    from raydis.config import DataConfig
    from raydis.data import open_dataset
    from tests.benchmarks.reproduction import scored_indices

    dataset = open_dataset(DataConfig(name="dsprites_procedural"), cache_dir=folder)
    np.save(folder / "scored.npy", scored_indices(dataset))
    (drawn,) = folder.glob("dsprites_procedural-*.npy")
    (folder / "images.npy").symlink_to(drawn.name)


def collect(folder: Path) -> None:
    """Score the codes of all runs, and write everything to the file that `tests.benchmarks.reproduction` reads."""
    from raydis.data.dsprites import DSPRITES
    from tests.benchmarks.reproduction import LOSSES, METHODS, REFERENCE, scores_of

    factors = np.stack(np.unravel_index(np.load(folder / "scored.npy"), DSPRITES.sizes), axis=1)
    runs = []
    for method in METHODS:
        for path in sorted(folder.glob(f"{method}-*.json")):
            run = json.loads(path.read_text())
            scores = {
                step: scores_of(np.load(path.with_suffix(f".{step}.npy")), factors) for step in run["scored_steps"]
            }
            kept = {name: [round(value, 3) for value in run[name]] for name in LOSSES}
            runs.append({"method": method, "seed": run["seed"], **kept, "scores": scores})
    steps = [step for step in runs[0]["scores"] if all(step in run["scores"] for run in runs)]
    about = {"code": "disentanglement-lib 1.5", "window": WINDOW, "scored_steps": steps}
    REFERENCE.write_text(json.dumps(about | {"runs": runs}, indent=1) + "\n")


# ---- in TensorFlow's environment


def load() -> tuple[Any, Any, Any]:
    """TensorFlow in its compatibility mode, gin, and disentanglement_lib's module of VAEs."""
    os.environ.update(TF_USE_LEGACY_KERAS="1", CUDA_VISIBLE_DEVICES="", TF_CPP_MIN_LOG_LEVEL="3")
    tensorflow: Any = importlib.import_module("tensorflow")
    tf: Any = importlib.import_module("tensorflow.compat.v1")
    tf.disable_eager_execution()
    importlib.import_module("tf_keras")
    modes = types.SimpleNamespace(TRAIN="train", EVAL="eval", PREDICT="infer")
    tf.estimator = tensorflow.estimator = types.SimpleNamespace(ModeKeys=modes, SessionRunHook=tf.train.SessionRunHook)
    names = ("tensorflow.contrib", "tensorflow_hub", "tensorflow_probability")
    sys.modules.update({name: types.ModuleType(name) for name in names})
    spec = namedtuple("spec", "mode loss train_op training_hooks eval_metrics", defaults=(None,) * 5)
    sys.modules["tensorflow.contrib"].tpu = types.SimpleNamespace(TPUEstimatorSpec=spec)  # type: ignore[attr-defined]
    importlib.import_module("gin.tf.external_configurables")
    gin: Any = importlib.import_module("gin")
    configurable = gin.configurable

    def renamed(*names: Any, **options: Any) -> Any:
        new = {"whitelist": "allowlist", "blacklist": "denylist"}
        return configurable(*names, **{new.get(name, name): value for name, value in options.items()})

    gin.configurable = renamed
    return tf, gin, importlib.import_module("disentanglement_lib.methods.unsupervised.vae")


def study_settings(method: str) -> str:
    """The settings of disentanglement_lib's study, without those of its training loop, and the method's strength."""
    package = Path(importlib.import_module("disentanglement_lib").__file__ or "").parent
    lines = (package / "config/unsupervised_study_v1/model_configs/shared.gin").read_text().splitlines()
    kept = [line for line in lines if not line.startswith(("model.", "dataset.", "vae.beta"))]
    return "\n".join([*kept, "discriminator.discriminator_fn = @fc_discriminator", STRENGTHS[method]])


def train(folder: Path, method: str, seed: int, num_steps: int) -> None:
    """Train one run. Write its losses, and its codes after every SCORED_STEPS steps."""
    tf, gin, vae = load()
    gin.parse_config(study_settings(method))
    images, scored = np.load(folder / "images.npy", mmap_mode="r"), np.load(folder / "scored.npy")
    tf.set_random_seed(seed)
    rng = np.random.RandomState(seed)
    tf.train.get_or_create_global_step()
    batch = tf.placeholder(tf.float32, (BATCH_SIZE, 64, 64, 1))
    model = getattr(vae, CLASSES[method])()
    spec = model.model_fn(batch, None, "train", None)
    operations = tf.get_default_graph().get_operations()
    (kl,) = (each.outputs[0] for each in operations if each.name == "kl_loss")
    (means,) = (each.outputs[0] for each in operations if each.name.endswith("means/BiasAdd"))
    wanted = {"reconstruction": spec.training_hooks[0]._tensors["reconstruction_loss"], "kl": kl, "": spec.train_op}
    run: dict[str, Any] = {"method": method, "seed": seed, "reconstruction": [], "kl": [], "scored_steps": []}
    sums, path = {"reconstruction": 0.0, "kl": 0.0}, folder / f"{method}-{seed}.json"

    def pixels(indices: np.ndarray) -> np.ndarray:
        return (images[indices] > 0).astype(np.float32)

    one = tf.ConfigProto(intra_op_parallelism_threads=1, inter_op_parallelism_threads=1)
    with tf.Session(config=one) as session:
        session.run(tf.global_variables_initializer())
        started = time.process_time()
        for step in range(1, num_steps + 1):
            found = session.run(wanted, {batch: pixels(rng.randint(len(images), size=BATCH_SIZE))})
            sums = {name: total + float(found[name]) for name, total in sums.items()}
            if step % WINDOW == 0:
                for name, total in sums.items():
                    run[name].append(total / WINDOW)
                speed = step * BATCH_SIZE / (time.process_time() - started)
                print(
                    f"{method} {seed} {step}: {run['reconstruction'][-1]:.1f} {run['kl'][-1]:.2f} {speed:.0f}/s",
                    flush=True,
                )
                sums = dict.fromkeys(sums, 0.0)
            if step % SCORED_STEPS == 0:
                padded = np.resize(scored, -(-len(scored) // BATCH_SIZE) * BATCH_SIZE).reshape(-1, BATCH_SIZE)
                codes = np.concatenate([session.run(means, {batch: pixels(each)}) for each in padded])
                np.save(path.with_suffix(f".{step}.npy"), codes[: len(scored)])
                run["scored_steps"].append(str(step))
                path.write_text(json.dumps(run))
        print(f"counted steps: {session.run(tf.train.get_global_step())}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("prepare", "train", "collect"))
    parser.add_argument("folder", type=Path)
    parser.add_argument("method", nargs="?", choices=tuple(CLASSES))
    parser.add_argument("seed", nargs="?", type=int)
    parser.add_argument("--steps", type=int, default=1500)
    options = parser.parse_args()
    if options.what == "train":
        if options.method is None or options.seed is None:
            parser.error("train needs a method and a seed")
        train(options.folder, options.method, options.seed, options.steps)
    else:
        {"prepare": prepare, "collect": collect}[options.what](options.folder)


if __name__ == "__main__":
    main()
