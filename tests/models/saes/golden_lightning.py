"""Trains with SAEModule and Lightning as a golden trace was, in blocks that do not divide its steps."""

import lightning
from torch.utils.data import DataLoader

from src.modules.sae import SAEModule


def train_with_lightning(sae, batches, training, folder):
    batches = list(batches)
    schedule = {"total_steps": len(batches), **(training.schedule or {})}
    module = SAEModule(sae, lr=training.lr, betas=training.betas, max_grad_norm=training.max_grad_norm, **schedule)
    trainer = lightning.Trainer(
        accelerator="cpu",
        max_epochs=1,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        limit_val_batches=0,
        default_root_dir=folder,
    )
    blocks = [batches[start : start + 7] for start in range(0, len(batches), 7)]
    trainer.fit(module, DataLoader(blocks, batch_size=None), DataLoader(batches[:1], batch_size=None))
