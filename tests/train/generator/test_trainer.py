"""The trainer against autograd and AdamW by hand, and that nothing but its inputs matters."""

import dataclasses
import math

import pytest
import torch
from torch.nn.functional import conv2d

from dnd_fast import InvalidInput
from dnd_fast.decoder.convolutions import convolutions_of
from dnd_fast.kernels import reference
from dnd_fast.lora.batched import Batch, TokenizedExample, adapter_losses, collate
from dnd_fast.lora.frozen_base import FrozenBase
from dnd_fast.svf.expert import DecomposedModel
from dnd_fast.svf.layout import SvfLayout
from dnd_fast.train.generator import losses as objectives
from dnd_fast.train.generator.data import MicroBatches, add_noise_and_dropout, pad_conditions
from dnd_fast.train.generator.distributed import DistributedContext
from dnd_fast.train.generator.trainer import learning_rate

from .toy import DATA_SETS, MSE, SFT, new_base, new_trainer, same

QUIET = dataclasses.replace(MSE, noise=0.0, dropout=0.0)


def weights(trainer):
    return {key: value.clone() for key, value in trainer.decoder.state_dict().items()}


def fitted(*args, **options):
    trainer = new_trainer(*args, **options)
    records = []
    trainer.on_step_end = records.append
    trainer.fit()
    return weights(trainer), records


def test_the_loss_of_experts_is_that_of_merged_ones():
    base = DecomposedModel(new_base())
    layout = SvfLayout.for_base(base)
    torch.manual_seed(0)
    tokens = 1 + 0.3 * torch.randn(2, layout.num_tokens, *layout.token_shape)
    examples = [TokenizedExample(torch.randint(32, (6 + i,)).tolist(), 3) for i in range(6)]
    batch = collate(examples).view(2, 3)
    loss = objectives.sft(base, layout, tokens.requires_grad_(), batch)
    loss.backward()
    assert (tokens.grad.flatten(1).norm(dim=1) > 0).all()
    alone = []
    for k in range(2):
        one = {name: z[k] for name, z in layout.detokenize(tokens.detach()).items()}
        with base.merged(base.expert(one)):
            only = Batch(*(part[k : k + 1] for part in batch))
            alone.append(adapter_losses(base.model, {}, 1.0, only))
    assert loss.item() == pytest.approx(torch.cat(alone).mean().item(), rel=1e-5)


def test_a_base_that_does_not_fit_the_layout_is_refused():
    trainer = new_trainer()
    trainer.base = DecomposedModel(trainer.base)
    with pytest.raises(InvalidInput, match="one of LoRA adapters a plain model"):
        trainer.fit()


def test_steps_are_those_of_a_plain_loop():
    """Condition, loss, clipping, learning rate and AdamW, written out in float64."""
    phase = dataclasses.replace(QUIET, clip=0.05)
    trainer = new_trainer(phases=[phase])
    twin = new_trainer(phases=[phase])
    decoder = twin.decoder.double()
    optimizer = torch.optim.AdamW(decoder.parameters(), lr=1.0, weight_decay=0.1)
    importance = twin.decoder.criterion_weight.double()
    losses = []
    for step in range(phase.steps):
        conditions, targets = [], []
        for position in range(phase.batch):
            pair = twin.pairing.draw(step, position)
            task = twin.tasks[pair.dataset]
            condition = torch.zeros(3, 6, 8, dtype=torch.float64)
            for row, index in enumerate(pair.texts):
                text = task.texts[0][index]
                condition[row, : len(text)] = text
            conditions.append(condition)
            targets.append(task.targets[pair.checkpoint].double())
        error = decoder(torch.stack(conditions)) - torch.stack(targets)
        loss = (importance * error.square()).mean()
        optimizer.zero_grad()
        loss.backward()
        norm = torch.cat([p.grad.flatten() for p in decoder.parameters()]).norm()
        for parameter in decoder.parameters():
            parameter.grad *= min(1.0, phase.clip / norm)
        warm = min(1, (step + 1) / 20)
        cosine = 0.5 * (1 + math.cos(math.pi * step / phase.steps))
        optimizer.param_groups[0]["lr"] = phase.learning_rate * warm * (0.95 * cosine + 0.05)
        optimizer.step()
        losses.append(loss.item())
    records = []
    trainer.on_step_end = records.append
    trainer.fit()
    assert [record.loss for record in records] == pytest.approx(losses, rel=1e-5)
    assert max(record.gradient_norm for record in records) > phase.clip  # it was clipped
    # Float32 rounds weights of 0.1 by 1e-4 of how far they have moved, here.
    assert same(weights(trainer), decoder.float().state_dict(), 3e-3)


def test_the_sft_loss_is_the_base_models():
    trainer = new_trainer(phases=[SFT])
    records = []
    trainer.on_step_end = records.append
    trainer.fit()
    twin = new_trainer()
    batches = MicroBatches(
        twin.tasks, twin.pairing, SFT, length=6, context=DistributedContext(), size=SFT.batch
    )
    batch = batches[0]
    condition = pad_conditions(batch, (3, 6, 8))
    add_noise_and_dropout(condition, None, batch.pairs, SFT)
    adapters = twin.layout.detokenize(twin.decoder(condition))
    chosen = [twin.tasks[pair.dataset].examples[i] for pair in batch.pairs for i in pair.examples]
    expected = adapter_losses(twin.base, adapters, 2.0, collate(chosen).view(SFT.batch, -1)).mean()
    assert records[0].loss == pytest.approx(expected.item(), rel=1e-6)


@pytest.mark.parametrize("options", [{}, {"micro_batch": 2}, {"checkpointing": True}])
def test_a_frozen_base_trains_the_same(options):
    expected, records = fitted(**options)
    trainer = new_trainer(**options)
    trainer.base = FrozenBase(
        trainer.base, trainer.layout, recompute=options.get("checkpointing", False)
    )
    losses = []
    trainer.on_step_end = lambda metrics: losses.append(metrics.loss)
    trainer.fit()
    assert losses == pytest.approx([record.loss for record in records], rel=1e-5)
    assert same(weights(trainer), expected)


@pytest.mark.parametrize("phase", [QUIET, SFT])
def test_it_learns(phase):
    # One adapter and one condition for each data set: there is something to be found.
    phase = dataclasses.replace(phase, steps=80, learning_rate=1e-2, batch=6, dropout=0.0)
    trainer = new_trainer(phases=[phase])
    trainer.pairing = dataclasses.replace(
        trainer.pairing, checkpoints=(1,) * DATA_SETS, candidates=(1,) * DATA_SETS
    )
    records = []
    trainer.on_step_end = records.append
    trainer.fit()
    assert records[-1].loss < (0.3 if phase.objective == "mse" else 0.96) * records[0].loss


def test_mse_skips_padding_and_averages_over_the_rest():
    """A product with a mask would spread NaN into every gradient."""
    torch.manual_seed(0)
    generated = torch.randn(2, 3, 2, 4, requires_grad=True)
    targets = torch.randn(2, 3, 2, 4)
    targets[:, 2, :, 3:] = math.nan
    importance = torch.tensor([0.5, 1.5, 1.0])
    loss = objectives.mse(generated, targets, importance)
    loss.backward()
    valid = ~targets.isnan()
    squares = (generated.detach() - targets).square() * importance.view(-1, 1, 1)
    assert loss.item() == pytest.approx(squares[valid].mean().item(), rel=1e-6)
    assert (generated.grad[~valid] == 0).all()
    assert generated.grad[valid].isfinite().all()


def test_noise_and_dropout_are_each_pairs_own():
    """The same whether a pair is alone in a micro-batch or not; of the sizes the phase says."""
    phase = dataclasses.replace(MSE, noise=1e-2, dropout=0.25)
    trainer = new_trainer()

    def disturbed(size, index):
        batch = MicroBatches(
            trainer.tasks, trainer.pairing, phase, length=6, context=DistributedContext(), size=size
        )[index]
        condition, target = torch.ones(size, 3, 600, 8), batch.targets.clone()
        add_noise_and_dropout(condition, target, batch.pairs, phase)
        return condition, target - batch.targets

    condition, noise = disturbed(4, 0)
    alone, noise_alone = disturbed(1, 2)
    assert torch.equal(condition[2:3], alone)
    assert torch.equal(noise[2:3], noise_alone)
    assert not torch.equal(condition[0], condition[1])
    kept = condition[condition != 0] * 0.75
    assert kept.numel() / condition.numel() == pytest.approx(0.75, abs=0.01)
    assert kept.mean().item() == pytest.approx(1, abs=1e-3)
    assert kept.std().item() == pytest.approx(1e-2, rel=0.02)
    assert noise.std().item() == pytest.approx(1e-3, rel=0.05)


@pytest.mark.parametrize("share", [0.3, 0.95])
def test_whole_prompts_are_dropped_but_never_all(share):
    """What is not dropped is what it is without, and element by element dropout comes after."""
    pairs = [new_trainer().pairing.draw(step, 0) for step in range(400)]
    phase = dataclasses.replace(MSE, noise=0.1, dropout=0.0, prompt_dropout=share)

    def disturbed(pairs, phase):
        condition = torch.ones(len(pairs), 5, 4, 8)
        add_noise_and_dropout(condition, None, pairs, phase)
        return condition

    found = disturbed(pairs, phase)
    assert torch.equal(found[7:9], disturbed(pairs[7:9], phase))
    kept = found.flatten(2).ne(0).any(-1)
    plain = disturbed(pairs, dataclasses.replace(phase, prompt_dropout=0.0))
    assert torch.equal(found, plain * kept[..., None, None])
    counts = kept.sum(1)
    assert counts.min() >= 1
    assert counts.float().mean() == pytest.approx(5 * (1 - share) + share**5, abs=0.2)
    assert kept.float().mean(0).std() < 0.05  # wherever a prompt stands
    both = disturbed(pairs, dataclasses.replace(phase, dropout=0.5))
    where = both != 0
    assert torch.equal(both[where], 2 * found[where])
    assert where[kept].float().mean() == pytest.approx(0.5, abs=0.02)


def test_draws_without_prompt_dropout_are_those_of_earlier_versions():
    phase = dataclasses.replace(MSE, noise=0.1, dropout=0.25)
    condition = torch.ones(1, 3, 6, 8)
    pair = new_trainer().pairing.draw(3, 1)
    add_noise_and_dropout(condition, None, [pair], phase)
    generator = torch.Generator().manual_seed(pair.noise_seed)
    expected = 1 + 0.1 * torch.empty(3, 6, 8).normal_(generator=generator)
    expected *= torch.empty(3, 6, 8).bernoulli_(0.75, generator=generator) / 0.75
    torch.testing.assert_close(condition[0], expected)


@pytest.mark.parametrize(
    "options",
    [
        {"micro_batch": 1},
        {"micro_batch": 2, "checkpointing": True},
        {"workers": 2, "micro_batch": 2},
    ],
)
def test_how_it_is_computed_does_not_matter(options):
    plain, records = fitted()
    other, others = fitted(**options)
    assert same(plain, other)
    for record, again in zip(records, others, strict=True):
        assert again.loss == pytest.approx(record.loss, rel=1e-5)
        assert again.learning_rate == record.learning_rate


def test_planned_convolutions_train_alike():
    plain, _ = fitted()
    trainer = new_trainer()
    trainer.decoder.set_plan("fft")
    trainer.fit()
    assert same(plain, weights(trainer))


def test_bfloat16_is_autocast():
    """Weights, gradients and state stay float32; losses stay close."""
    plain, records = fitted()
    other, others = fitted(bf16=True)
    assert {value.dtype for value in other.values()} == {torch.float32}
    assert not same(plain, other)
    for record, again in zip(records, others, strict=True):
        assert again.loss == pytest.approx(record.loss, rel=2e-2)


def test_a_planned_convolution_is_autocast_like_a_direct_one():
    """In float32 it would take twice the memory and, on a GPU, several times the time."""
    trainer = new_trainer()
    block = trainer.decoder.blocks[0]
    convolve = convolutions_of(trainer.decoder.checked_plan("fft"), "auto")[0]
    x = torch.randn(2, 8, 6, 3)
    with torch.autocast("cpu", torch.bfloat16):
        direct = reference.direct("a_width", x, block.a_width.weight)
        planned = convolve("a_width", x.bfloat16(), block.a_width.weight)
        seen = [direct.dtype, planned.dtype]
    exact = conv2d(x.double(), block.a_width.weight.double(), padding=1)
    assert seen == [torch.bfloat16] * 2
    limit = 2 * (direct - exact).abs().max()
    assert (planned - exact).abs().max() <= limit


def test_the_learning_rate():
    phase = dataclasses.replace(MSE, steps=200, learning_rate=2.0)
    rates = [learning_rate(step, phase) for step in range(200)]
    assert rates[0] == 0.1
    assert max(rates) == rates[19] == pytest.approx(2.0, rel=0.03)
    assert rates[19:] == sorted(rates[19:], reverse=True)
    assert rates[-1] == pytest.approx(0.1, rel=0.01)


@pytest.mark.parametrize("where", ["target", "text"])
def test_a_loss_that_is_not_finite_stops_the_run(tmp_path, where):
    """The state before the step is kept, and the message names step and data sets."""
    trainer = new_trainer(tmp_path, [dataclasses.replace(QUIET, batch=1)], save_every=100)
    drawn = [trainer.pairing.draw(step, 0).dataset for step in range(QUIET.steps)]
    bad = drawn[-1]
    step = drawn.index(bad)
    task = trainer.tasks[bad]
    if where == "target":
        task.targets.fill_(math.inf)
    else:
        for text in task.texts[0]:
            text.fill_(math.inf)
    with pytest.raises(
        InvalidInput, match=rf"step {step + 1}: the loss is .*pairs of data-{bad}\."
    ):
        trainer.fit()
    state = trainer.checkpoints.latest()
    assert state.step == step
    assert all(value.isfinite().all() for value in state.weights.values())


def test_what_a_phase_needs():
    trainer = new_trainer(phases=[SFT])
    trainer.base = None
    with pytest.raises(InvalidInput, match="'sft' needs the base model"):
        trainer.fit()
    trainer = new_trainer(phases=[MSE])
    trainer.decoder.criterion_weight = None
    with pytest.raises(InvalidInput, match="needs the tokens' importance"):
        trainer.fit()


def test_eight_bits_need_bitsandbytes(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "bitsandbytes", None)
    monkeypatch.setitem(__import__("sys").modules, "bitsandbytes.optim", None)
    with pytest.raises(InvalidInput, match="pip install bitsandbytes"):
        fitted(optimizer="adamw8bit")
    with pytest.raises(InvalidInput, match="use adamw with shards"):
        fitted(optimizer="adamw8bit", shard=True)
