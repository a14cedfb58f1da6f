"""Callbacks on Hugging Face's Trainer: training stays what it is, and the numbers are those of its own loss."""

from __future__ import annotations

import pytest
import torch

pytest.importorskip("accelerate")
transformers = pytest.importorskip("transformers")

from lightning_gp.callbacks import (  # noqa: E402
    CosineSimilarity,
    CriticalLearningRate,
    GradientNoise,
    GradientNorm,
    HessianEigenvalues,
    LearningRateBounds,
    UpdateStatistics,
)
from lightning_gp.integrations.transformers import attach  # noqa: E402

SIZES = {"hidden_size": 8, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 8}


def bert():
    config = transformers.BertConfig(vocab_size=20, max_position_embeddings=8, **SIZES)
    return transformers.BertForSequenceClassification(config)


def llama():
    return transformers.LlamaForCausalLM(transformers.LlamaConfig(vocab_size=20, **SIZES))


def texts(kind):
    generator = torch.Generator().manual_seed(0)
    words = torch.randint(0, 20, (16, 6), generator=generator)
    labels = words if kind is llama else torch.randint(0, 2, (16,), generator=generator)
    return [{"input_ids": each, "labels": label} for each, label in zip(words, labels, strict=True)]


def trainer(tmp_path, kind, cls=None, double=False, items=None, **options):
    transformers.set_seed(0)
    given = {"per_device_train_batch_size": 4, "num_train_epochs": 2, "learning_rate": 1e-3, **options}
    arguments = transformers.TrainingArguments(
        str(tmp_path), report_to=[], save_strategy="no", use_cpu=True, disable_tqdm=True, logging_steps=3, **given
    )
    model = kind().double() if double else kind()
    return (cls or transformers.Trainer)(model, arguments, train_dataset=texts(kind) if items is None else items)


def every():
    return [
        GradientNorm(),
        GradientNorm(at="probe", prefix="probe_", every_n_steps=3),
        GradientNoise(parts=2),
        HessianEigenvalues(k=2),
        LearningRateBounds(),
        CriticalLearningRate(),
        UpdateStatistics(),
    ]


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        (bert, {}),
        (llama, {"gradient_accumulation_steps": 2, "bf16": True}),
        pytest.param(llama, {}, marks=pytest.mark.slow),
        pytest.param(bert, {"gradient_accumulation_steps": 2, "bf16": True}, marks=pytest.mark.slow),
    ],
    ids=["bert", "llama, bf16, accumulation", "llama", "bert, bf16, accumulation"],
)
def test_training_is_bitwise_what_it_is_without(tmp_path, kind, options):
    weights = []
    for callbacks in ([], every()):
        mine = trainer(tmp_path, kind, **options)
        if callbacks:
            attach(mine, callbacks)
        mine.train()
        weights.append(mine.model.state_dict())
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])
    assert all(callback.values for callback in callbacks)
    logged = {key for entry in mine.state.log_history for key in entry}
    assert {"gradients/norm", "curvature/eigenvalue_1", "learning_rates/edge", "updates/ratio"} <= logged
    steps = [entry["step"] for entry in mine.state.log_history if "probe_gradients/norm" in entry]
    assert steps == list(range(3, mine.state.global_step + 1, 3))


@pytest.mark.slow
@pytest.mark.parametrize("kind", [bert, llama])
def test_numbers_are_those_of_the_loss(tmp_path, kind):
    norm, values, edge = GradientNorm(at="probe"), HessianEigenvalues(k=2, tol=1e-8), LearningRateBounds(tol=1e-8)
    mine = trainer(tmp_path, kind, double=True, optim="sgd", max_steps=3, lr_scheduler_type="constant")
    for module in mine.model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    if hasattr(mine.model.config, "attention_probs_dropout_prob"):
        mine.model.config.attention_probs_dropout_prob = 0.0
        for layer in mine.model.bert.encoder.layer:
            layer.attention.self.dropout.p = 0.0
    attach(mine, [norm, values, edge])
    mine.train()

    batch = {key: torch.stack([item[key] for item in texts(kind)[:4]]) for key in ("input_ids", "labels")}
    named = {name: each for name, each in mine.model.named_parameters() if each.requires_grad}
    mine.model.train().set_attn_implementation("eager")
    loss = mine.model(**batch).loss
    gradient = torch.cat(
        [
            g.flatten()
            for g in torch.autograd.grad(loss, list(named.values()), create_graph=True, materialize_grads=True)
        ]
    )
    assert norm.values["gradients/norm"] == pytest.approx(float(gradient.detach().norm()), rel=1e-8)
    rows = torch.stack(
        [
            torch.cat(
                [
                    part.flatten()
                    for part in torch.autograd.grad(
                        entry, list(named.values()), retain_graph=True, materialize_grads=True
                    )
                ]
            )
            for entry in gradient
        ]
    )
    spectrum = torch.linalg.eigvalsh((rows + rows.T) / 2)
    found = [values.values[f"curvature/eigenvalue_{i}"] for i in (1, 2)]
    assert found == pytest.approx(spectrum.flip(0)[:2].tolist(), rel=1e-6)
    assert edge.values["learning_rates/outer_critical"] == pytest.approx(2 / float(spectrum[-1]), rel=1e-6)
    assert edge.values["learning_rates/outer"] == 1e-3


def test_an_overridden_loss_is_the_one_that_is_measured(tmp_path):
    class Doubled(transformers.Trainer):
        def compute_loss(self, model, inputs, return_outputs=False, **kwargs):
            self.seen = getattr(self, "seen", 0) + 1
            result = super().compute_loss(model, inputs, return_outputs=return_outputs, **kwargs)
            return (2 * result[0], result[1]) if return_outputs else 2 * result

    norms, seen = [], []
    for kind in (transformers.Trainer, Doubled):
        callback = GradientNorm(at="probe")
        mine = trainer(tmp_path, llama, cls=kind, max_steps=1, learning_rate=0.0)
        attach(mine, [callback])
        mine.train()
        norms.append(callback.values["gradients/norm"])
        seen.append(getattr(mine, "seen", None))
    assert norms[1] == pytest.approx(2 * norms[0], rel=1e-5)
    assert seen == [None, 1]  # what the measurement changes in the Trainer is put back


def test_a_batch_of_ones_own(tmp_path):
    class Stream(torch.utils.data.IterableDataset):
        def __iter__(self):
            return iter(texts(llama))

    mine = trainer(tmp_path, llama, items=Stream(), max_steps=2)
    attach(mine, [GradientNorm(at="probe")])
    with pytest.raises(ValueError, match="batch="):
        mine.train()
    mine, callback = trainer(tmp_path, llama, items=Stream(), max_steps=2), GradientNorm(at="probe", every_n_steps=1)
    attach(mine, [callback], batch={key: value[None] for key, value in texts(llama)[0].items()})
    mine.train()
    assert callback.values["gradients/norm"] > 0


@pytest.mark.parametrize(
    ("callbacks", "error", "words"),
    [
        ([CosineSimilarity()], ValueError, "GradientNoise compares"),
        ([GradientNorm(loss_fn=lambda module, batch: 0)], ValueError, "compute_loss"),
        ([GradientNorm(), GradientNorm()], ValueError, "prefix="),
        (["norm"], TypeError, "Probe"),
    ],
    ids=["cosine", "loss_fn", "twice", "no callback"],
)
def test_refusals(tmp_path, callbacks, error, words):
    with pytest.raises(error, match=words):
        attach(trainer(tmp_path, llama), callbacks)


def test_several_devices_and_other_trainers_are_refused(tmp_path):
    with pytest.raises(TypeError, match="transformers\\.Trainer"):
        attach(object(), [GradientNorm()])
    mine = trainer(tmp_path, llama)
    mine.is_fsdp_enabled = True
    with pytest.raises(ValueError, match="FSDP"):
        attach(mine, [GradientNorm()])
