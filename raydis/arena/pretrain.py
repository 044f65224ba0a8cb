"""Train the model that an entrant's runs borrow, once for all of them."""

from __future__ import annotations

from rich.console import Console

from raydis.arena.folder import Pretrained, write_pretrained
from raydis.arena.spec import Entrant
from raydis.checkpoint.fetch import default_cache, fetch_checkpoint
from raydis.engine.record import RunRecord
from raydis.store import Store
from raydis.train.trainer import run


def pretrain(store: Store, key: str, name: str, entrant: Entrant, console: Console) -> Pretrained:
    """Train the model that an entrant borrows, or go on with it, and record that it is finished.

    Raises:
        RaydisError: the training failed. The same call goes on from its last checkpoint, if there is one.
    """
    assert entrant.pretraining is not None
    config = entrant.pretraining.run

    def show(record: RunRecord) -> None:
        if not record.finished:
            console.print(f"  {record.images_seen} of {record.num_images} images", highlight=False)

    found = run(config, storage=str(store.location / key), name=f"{name}.pretraining", on_report=show)
    metrics = fetch_checkpoint(found.checkpoint, default_cache()).metrics
    done = Pretrained(
        checkpoint=found.checkpoint,
        images_seen=config.train.num_images,
        train_s=metrics.get("train_s"),
        cpu_s=metrics.get("cpu_s"),
    )
    write_pretrained(store, key, name, done)
    return done
