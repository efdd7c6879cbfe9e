"""Training: weights of the loss, averages, conditions, batches over processes, resumes and checkpoints."""

from __future__ import annotations

from museum.exhibit import Exhibit

__all__ = ["EXHIBITS"]

_RESUME = "tests/train/test_resume.py::test_a_resumed_run_ends_with_the_same_bits"
_PAIR = "tests/train/test_parallel.py::test_two_processes_train_what_one_trains"

EXHIBITS = (
    Exhibit(
        name="min-snr-of-the-noise-for-all",
        bug=35,
        file="diffusion/weight.py",
        text=(
            "    out = torch.as_tensor(parameterization(*process.schedule(t)).out, dtype=torch.float64)\n"
            "    return out.expand(len(t)) ** 2\n"
        ),
        replacement="    alpha, sigma = process.schedule(t)\n    return (sigma / alpha) ** 2\n",
        tests=("tests/diffusion/test_parameterization.py::test_min_snr_teaches_every_parameterization_the_same",),
        note="min(SNR, gamma) / SNR for the velocity too, where it is over SNR + 1.",
    ),
    Exhibit(
        name="average-left-in-place",
        bug=36,
        file="train/ema.py",
        text="        finally:\n            self._exchange()\n",
        replacement="        finally:\n            pass\n",
        tests=("tests/train/test_step.py::test_judging_sees_the_average_and_gives_the_weights_back",),
    ),
    Exhibit(
        name="judged-without-the-average",
        bug=36,
        file="train/state.py",
        text="                    stack.enter_context(self.ema.swapped())\n",
        replacement="                    pass\n",
        tests=("tests/train/test_step.py::test_judging_sees_the_average_and_gives_the_weights_back",),
    ),
    Exhibit(
        name="left-in-the-mode-of-judging",
        bug=36,
        file="train/state.py",
        text="                module.training = mode\n",
        replacement="                pass\n",
        tests=("tests/train/test_step.py::test_judging_sees_the_average_and_gives_the_weights_back",),
        note="Dropout is off from the first figures on.",
    ),
    Exhibit(
        name="average-begun-anew-on-resume",
        bug=37,
        file="train/state.py",
        text='            self.ema.load(tables["ema"])\n',
        replacement="            self.ema.load(weights)\n",
        tests=(_RESUME,),
    ),
    Exhibit(
        name="average-not-saved",
        bug=37,
        file="train/state.py",
        text="dict(self.ema.average)\n",
        replacement="{name: p.detach() for p, name in self.names.items() if name in self.ema.average}\n",
        tests=(_RESUME,),
    ),
    Exhibit(
        name="weights-resumed-from-the-average",
        bug=37,
        file="train/state.py",
        text="        self.task.modules.load_state_dict(weights)\n",
        replacement='        self.task.modules.load_state_dict({**weights, **tables.get("ema", {})})\n',
        tests=(_RESUME,),
    ),
    Exhibit(
        name="moments-not-resumed",
        bug=45,
        file="train/state.py",
        text='        self._load_optimizers(tables.get("optimizer", {}))\n',
        replacement="        self._load_optimizers({})\n",
        tests=(_RESUME,),
        note="There are no adapters here; the optimiser's moments are what else a resume may leave behind.",
    ),
    Exhibit(
        name="trained-weights-not-resumed",
        bug=45,
        file="train/state.py",
        text="        self.task.modules.load_state_dict(weights)\n",
        replacement=(
            "        kept = {name: p for p, name in self.names.items()}\n"
            "        self.task.modules.load_state_dict({**weights, **kept})\n"
        ),
        tests=(_RESUME,),
    ),
    Exhibit(
        name="latents-without-their-scale",
        bug=38,
        file="decoder/latents.py",
        text="        return (mean - self.mean) / self.std\n",
        replacement="        return mean\n",
        tests=("tests/test_decoder.py::test_latents_have_unit_scale",),
    ),
    Exhibit(
        name="decoded-without-their-shift",
        bug=38,
        file="decoder/latents.py",
        text="        return self.autoencoder.decode(z * self.std + self.mean).clamp(-1, 1)",
        replacement="        return self.autoencoder.decode(z * self.std).clamp(-1, 1)",
        tests=("tests/test_decoder.py::test_decoding_undoes_the_scale",),
    ),
    Exhibit(
        name="null-condition-of-zeros-in-training",
        bug=39,
        file="train/tasks/generator.py",
        text="            condition = condition.where(keep, self.null.rows([0] * len(batch)))\n",
        replacement=(
            "            nothing = self.null.rows([0] * len(batch)).map(torch.zeros_like)\n"
            "            condition = condition.where(keep, nothing)\n"
        ),
        tests=("tests/train/test_shown.py::test_a_dropped_caption_is_the_empty_prompt",),
    ),
    Exhibit(
        name="null-condition-of-zeros-in-sampling",
        bug=39,
        file="system.py",
        text="        condition, null = both.rows(slice(0, len(prompts))), both.rows(slice(len(prompts), None))\n",
        replacement=(
            "        condition, null = both.rows(slice(0, len(prompts))), both.rows(slice(len(prompts), None))\n"
            "        null = null if request.negative else null.map(torch.zeros_like)\n"
        ),
        tests=("tests/test_system.py::test_settings_sizes_and_negative_prompts",),
    ),
    Exhibit(
        name="captions-cut-without-a-word",
        bug=40,
        file="text/tokenizer.py",
        text="            if len(prompt.ids) > most\n",
        replacement="            if len(prompt.ids) > self.length * self.chunks\n",
        tests=("tests/test_text.py::test_what_is_lost_is_said_to_the_token",),
    ),
    Exhibit(
        name="captions-cut-unreported",
        bug=40,
        file="text/tokenizer.py",
        text="        return [count + marks * min(self.chunks, max(1, -(-count // self._room))) for count in counts]\n",
        replacement="        return [min(count + marks, self.length) for count in counts]\n",
        tests=("tests/test_text.py::test_what_is_lost_is_said_to_the_token",),
    ),
    Exhibit(
        name="padding-attended-to",
        bug=41,
        file="nn/attention.py",
        text="    if mask is None:\n        return _weigh(q, k, v, None)\n    some",
        replacement="    if True:\n        return _weigh(q, k, v, None)\n    some",
        tests=("tests/nn/test_conditions.py::test_padding_is_nothing",),
    ),
    Exhibit(
        name="padding-in-the-mean",
        bug=41,
        file="nn/transformer.py",
        text="        mean = h.sum(1) / real.sum(1).clamp(min=1.0)\n",
        replacement="        mean = h.mean(1)\n",
        tests=("tests/nn/test_conditions.py::test_text_padding_is_nothing",),
    ),
    Exhibit(
        name="mask-not-passed-to-a-block",
        bug=41,
        file="nn/dit.py",
        text="m[6], m[7]), tokens, mask)))",
        replacement="m[6], m[7]), tokens, None)))",
        tests=("tests/nn/test_conditions.py::test_padding_is_nothing[dit told]",),
    ),
    Exhibit(
        name="mask-not-passed-to-a-stage",
        bug=41,
        file="nn/unet.py",
        text="            h = self.cross(h, tokens, mask)\n",
        replacement="            h = self.cross(h, tokens)\n",
        tests=("tests/nn/test_conditions.py::test_padding_is_nothing[unet told]",),
    ),
    Exhibit(
        name="mask-lost-when-stacked",
        bug=41,
        file="types.py",
        text="                mask=torch.nn.functional.pad(mask, (0, extra)),\n",
        replacement="                mask=torch.nn.functional.pad(mask, (0, extra), value=True),\n",
        tests=("tests/test_types.py::test_stack_pads_and_masks",),
    ),
    Exhibit(
        name="same-noise-on-every-rank",
        bug=42,
        file="train/step.py",
        text='    rng = Rng.samples(seed, batch.sample, "train", phase.name)\n',
        replacement=(
            "    rows = [state.step * state.training.batch + i for i in range(len(batch))]\n"
            '    rng = Rng.samples(seed, rows, "train", phase.name)\n'
        ),
        tests=(_PAIR,),
    ),
    Exhibit(
        name="same-pictures-on-every-rank",
        bug=42,
        file="data/loader.py",
        text="        start = step * self.batch_size + self.rank * rows\n",
        replacement="        start = step * self.batch_size\n",
        tests=("tests/data/test_loader.py::test_ranks_together_are_one",),
    ),
    Exhibit(
        name="data-begun-anew-on-resume",
        bug=44,
        file="train/loop.py",
        text="            batch = self.loader.batch(self.state.step)\n",
        replacement="            batch = self.loader.batch(self.state.step - (self.resumed_from or 0))\n",
        tests=(_RESUME,),
    ),
    Exhibit(
        name="a-batch-skipped-on-resume",
        bug=44,
        file="train/loop.py",
        text="            batch = self.loader.batch(self.state.step)\n",
        replacement="            batch = self.loader.batch(self.state.step + (self.resumed_from is not None))\n",
        tests=(_RESUME,),
    ),
    Exhibit(
        name="same-order-every-epoch",
        bug=44,
        file="data/loader.py",
        text='permutation(self.epoch_size, self.seed, "order", epoch)]\n',
        replacement='permutation(self.epoch_size, self.seed, "order")]\n',
        tests=("tests/data/test_loader.py::test_every_epoch_is_a_permutation",),
    ),
    Exhibit(
        name="means-of-micro-batches",
        bug=46,
        file="train/step.py",
        text=(
            "        mean = loss.rows.float().sum() / total if loss.rows.dtype != torch.float64 "
            "else loss.rows.sum() / total\n"
        ),
        replacement="        mean = loss.rows.mean() / len(cuts)\n",
        tests=("tests/train/test_step.py::test_micro_batches_give_the_gradient_of_the_whole_batch",),
        note="Right for cuts of one size.",
    ),
    Exhibit(
        name="gradients-stay-at-home",
        bug=47,
        file="train/step.py",
        text="        world.sum_gradients(trained)\n",
        replacement="",
        tests=(_PAIR,),
        note="There is no wrapper that could be told not to synchronise; gradients are summed by hand.",
    ),
    Exhibit(
        name="everybody-begins-from-weights-of-their-own",
        bug=48,
        file="train/loop.py",
        text="self.world.broadcast(value for table in self.state.tables().values() for value in table.values())",
        replacement="pass",
        tests=(_PAIR,),
    ),
    Exhibit(
        name="norm-of-ones-own-gradients",
        bug=49,
        file="train/step.py",
        text=(
            "        world.sum_gradients(trained)\n"
            "        grads = [parameter.grad for parameter in trained if parameter.grad is not None]\n"
            "        norm = get_total_norm(grads)\n"
        ),
        replacement=(
            "        grads = [parameter.grad for parameter in trained if parameter.grad is not None]\n"
            "        norm = get_total_norm(grads)\n"
            "        world.sum_gradients(trained)\n"
        ),
        tests=(_PAIR,),
        note="Weights are whole on every rank here; what can be partial is the sum.",
    ),
    Exhibit(
        name="rate-advances-with-micro-batches",
        bug=50,
        file="train/step.py",
        text="        set_learning_rate(optimizer, learning_rate(training, step))\n",
        replacement="        set_learning_rate(optimizer, learning_rate(training, step * training.accumulate))\n",
        tests=("tests/train/test_step.py::test_accumulation_changes_a_run_by_rounding_alone",),
    ),
    Exhibit(
        name="rate-advances-with-processes",
        bug=50,
        file="train/step.py",
        text="        set_learning_rate(optimizer, learning_rate(training, step))\n",
        replacement="        set_learning_rate(optimizer, learning_rate(training, step * world.size))\n",
        tests=(_PAIR,),
    ),
    Exhibit(
        name="loss-of-other-rows",
        bug=51,
        file="run.py",
        text="        start = end\n",
        replacement="",
        tests=("tests/test_run.py::test_answers_are_cut_apart_in_order",),
        note="Nothing here stacks prior-preservation rows; what is stacked is cut apart again in one place.",
    ),
    Exhibit(
        name="cached-latents-of-other-pictures",
        bug=52,
        file="train/tasks/generator.py",
        text="        return self._encodings[list(batch.index)]\n",
        replacement="        return self._encodings[[sample % len(self._encodings) for sample in batch.sample]]\n",
        tests=("tests/train/test_shown.py::test_kept_latents_belong_to_their_pictures",),
    ),
    Exhibit(
        name="step-taken-although-not-finite",
        bug=56,
        file="train/step.py",
        text="        if not (math.isfinite(loss) and math.isfinite(length)):\n",
        replacement="        if False:\n",
        tests=("tests/train/test_step.py::test_a_loss_that_is_not_finite_takes_no_step",),
    ),
    Exhibit(
        name="saved-although-not-finite",
        bug=56,
        file="train/checkpoint.py",
        text='refuse_nonfinite(tables.get(name, {}), f"the checkpoint of step {state.step} is refused, {name}")',
        replacement="pass",
        tests=("tests/train/test_checkpoint.py::test_weights_that_are_not_finite_are_not_saved",),
    ),
    Exhibit(
        name="one-checkpoint-too-few",
        bug=57,
        file="train/checkpoint.py",
        text="        if sound >= keep:\n",
        replacement="        if sound >= keep - 1:\n",
        tests=("tests/train/test_checkpoint.py::test_retention_keeps_enough_good_ones_whatever_happens",),
    ),
    Exhibit(
        name="one-checkpoint-too-many",
        bug=57,
        file="train/checkpoint.py",
        text="        if sound >= keep:\n",
        replacement="        if sound > keep:\n",
        tests=("tests/train/test_checkpoint.py::test_retention_keeps_enough_good_ones_whatever_happens",),
    ),
    Exhibit(
        name="old-checkpoint-deleted-first",
        bug=57,
        file="train/checkpoint.py",
        text="    with new_directory(path, step=state.step) as temporary:\n",
        replacement=("    _purge(folder, keep - 1)\n    with new_directory(path, step=state.step) as temporary:\n"),
        tests=("tests/train/test_checkpoint.py::test_retention_keeps_enough_good_ones_whatever_happens",),
    ),
    Exhibit(
        name="damaged-checkpoints-counted",
        bug=57,
        file="train/checkpoint.py",
        text="            verify(path, contents=False)\n            sound += 1\n",
        replacement="            sound += 1\n",
        tests=("tests/train/test_checkpoint.py::test_a_damaged_checkpoint_is_not_counted_among_those_kept",),
    ),
)
