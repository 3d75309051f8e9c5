#!/usr/bin/python3
"""Holds an engine's log-probabilities against the float64 reference.

    compare.py ENGINE [--long] [--compute f32,bf16] [--weights int8,...]
               [-- ENGINE-OPTION...]
    compare.py ENGINE MODEL... [the same]
    compare.py --url http://127.0.0.1:8080/v1 --compute bf16 MODEL

Without MODEL it writes random checkpoints of every style to a temporary
directory: the quick set, or with --long more seeds, shards, types and
lengths, and checks too that ranks, threads and prefill chunks leave every
digit of the output alone.

The engine is `ENGINE score --model DIR --compute C --ids FILE`, one JSON
array of ids a line in, one array of log-probabilities out, null first. A
model with a multi-token prediction layer is scored a second time with --mtp,
through that. With --url a running server is asked instead, through
`completions` with `echo: true, max_tokens: 0`; it must serve MODEL.

What passes:

    f32     max |d| <= 1e-4 over the prompts whose smallest top-k margin in
            the reference is >= 1e-6 (below it another expert may be taken
            by the last bit)
    bf16    mean |d| <= 1.5 times the mean |d| of the reference with the
            inputs of its matrix products rounded to BF16

With --fp8-inputs the inputs of products with FP8 weights count as rounded to
FP8, with a scale for 128 elements, as the cuda backend has them.

With --weights the checkpoint is converted to each type (`ENGINE convert`) and
the reference reads the result. Against the reference with these weights the
engine must pass as above in f32; against the reference with the checkpoint's
own weights

    f32, bf16   mean |d| <= 1.5 times the mean |d| of the reference with the
                quantised weights (the column `ref`), or what bf16 may have
                anyway where that is more: published FP8 hardly changes

The exit status is 0 if all passes.
"""

import argparse
import json
import math
import os
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request

import one_thread  # noqa: F401 (before numpy)
import numpy as np

import make_checkpoint
import reference
import styles

MAX_F32 = 1e-4
MIN_MARGIN = 1e-6
MAX_RATIO = 1.5

# (style, seed, options of the writer, fields of config.json)
QUICK = [
    ('v3', 1, {'shards': 2}, {}),
    ('v2lite', 1, {'shards': 2}, {}),
    ('v2', 1, {'shards': 1}, {}),
    ('moonlight', 1, {'shards': 3}, {}),
    ('fp8', 1, {'shards': 2}, {}),
    # All experts taken: no top-k can flip, so bf16 shows its rounding alone.
    ('v2lite', 3, {}, {'n_routed_experts': 6, 'num_experts_per_tok': 6}),
]

LONG = QUICK + [
    ('v3', 2, {'dtype': 'f32'}, {}),
    ('v3', 3, {'shards': 5, 'order': 'name'}, {}),
    # One of everything that can be one; a dense model; all layers experts.
    ('v3', 4, {}, {'num_attention_heads': 1, 'num_experts_per_tok': 1,
                   'topk_group': 1}),
    ('v3', 5, {}, {'first_k_dense_replace': 4}),
    ('v3', 6, {}, {'first_k_dense_replace': 0, 'qk_rope_head_dim': 2}),
    ('v3', 7, {}, {'hidden_size': 257, 'kv_lora_rank': 129,
                   'v_head_dim': 33, 'qk_nope_head_dim': 31,
                   'moe_intermediate_size': 65, 'q_lora_rank': 17}),
    ('v3', 8, {}, {'hidden_size': 256, 'kv_lora_rank': 512,
                   'qk_nope_head_dim': 128, 'qk_rope_head_dim': 64,
                   'v_head_dim': 128, 'q_lora_rank': 128}),
    ('v2lite', 2, {'dtype': 'f32'}, {}),
    ('v2', 2, {}, {}),
    ('moonlight', 2, {}, {}),
    ('fp8', 2, {'shards': 4}, {}),
    ('fp8', 3, {'dtype': 'f32'}, {'hidden_size': 384, 'kv_lora_rank': 256}),
    ('k2', 1, {'shards': 3, 'backwards': True}, {}),
    # Experts that no number of ranks divides, hardly enough of them, none
    # that all rows share.
    ('moonlight', 3, {}, {'n_routed_experts': 7, 'num_experts_per_tok': 3}),
    ('moonlight', 4, {}, {'n_routed_experts': 3, 'num_experts_per_tok': 1}),
    ('v2', 3, {}, {'n_routed_experts': 8, 'num_experts_per_tok': 3,
                   'n_shared_experts': None}),
    ('v3', 9, {'dtype': 'mixed'}, {'moe_layer_freq': 2,
                                   'num_nextn_predict_layers': 0}),
    ('v3', 10, {}, {'q_lora_rank': None, 'rope_scaling': None,
                    'tie_word_embeddings': True}),
    # One layer, dense; all dense; sizes of one where a norm leaves sense.
    ('v3', 11, {}, {'num_hidden_layers': 1}),
    ('v2lite', 4, {}, {'first_k_dense_replace': 3, 'num_attention_heads': 1}),
    ('moonlight', 5, {}, {'hidden_size': 33, 'kv_lora_rank': 3,
                          'v_head_dim': 1, 'qk_nope_head_dim': 1,
                          'qk_rope_head_dim': 2, 'intermediate_size': 1,
                          'moe_intermediate_size': 1}),
    # Blocks of scales that end after an element, or with it.
    ('fp8', 4, {'dtype': 'mixed'},
     {'hidden_size': 129, 'moe_intermediate_size': 257, 'q_lora_rank': None,
      'intermediate_size': 383, 'kv_lora_rank': 255}),
    ('fp8', 5, {'shards': 3, 'backwards': True},
     {'hidden_size': 130, 'moe_intermediate_size': 1, 'kv_lora_rank': 1,
      'intermediate_size': 129, 'q_lora_rank': 127,
      'num_nextn_predict_layers': 1, 'n_routed_experts': 12}),
]

# The engine's options whose value must not change a digit.
VARIANTS = [
    ['--threads', '2', '--load', 'map'],
    ['--ranks', '2', '--prefill-chunk', '64'],
    ['--ranks', '3', '--threads', '1', '--prefill-chunk', '16'],
]


def numbers(text, count, unknown=1):
    """Checks one line of an engine's output, `unknown` nulls in front."""
    values = text if isinstance(text, list) else json.loads(text)
    if len(values) != count or any(v is not None for v in values[:unknown]):
        raise ValueError(f'{len(values)} values for {count} ids, or the '
                         'first is not null')
    if not all(isinstance(v, (int, float)) and math.isfinite(v)
               for v in values[unknown:]):
        raise ValueError('a value that is no finite number')
    return np.array(values[unknown:], float)


class Program:
    """An engine that is run for each set of prompts."""

    def __init__(self, path, options, timeout):
        self.path, self.options, self.timeout = path, options, timeout

    def run(self, model, compute, prompts, options=()):
        with tempfile.NamedTemporaryFile('w', suffix='.ids') as f:
            f.writelines(json.dumps(ids) + '\n' for ids in prompts)
            f.flush()
            command = [self.path, 'score', '--model', model, '--compute',
                       compute, '--ids', f.name, *self.options, *options]
            done = subprocess.run(command, capture_output=True, text=True,
                                  timeout=self.timeout, check=False)
        if done.returncode != 0:
            tail = done.stderr.strip().splitlines()[-1:] or ['no message']
            raise ValueError(f'exit status {done.returncode}: {tail[0]}')
        return done.stdout

    def score(self, model, compute, prompts, mtp=False):
        lines = self.run(model, compute, prompts,
                         ['--mtp'] if mtp else []).splitlines()
        if len(lines) != len(prompts):
            raise ValueError(f'{len(lines)} lines for {len(prompts)} prompts')
        return [numbers(line, len(ids), 1 + mtp)
                for line, ids in zip(lines, prompts)]


class Server:
    """An OpenAI-compatible endpoint that serves the model."""

    def __init__(self, url, model, key, logprobs, timeout):
        self.url, self.timeout = url.rstrip('/'), timeout
        self.headers = {'Content-Type': 'application/json'}
        if key:
            self.headers['Authorization'] = 'Bearer ' + key
        self.logprobs = logprobs
        self.model = model or self.ask('/models', None)['data'][0]['id']

    def ask(self, path, body):
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(self.url + path, data, self.headers)
        try:
            with urllib.request.urlopen(request, timeout=self.timeout) as f:
                return json.load(f)
        except urllib.error.HTTPError as e:
            raise ValueError(f'{e.code}: {e.read(300).decode()}') from e

    def score(self, _model, _compute, prompts, _mtp=False):
        result = []
        for ids in prompts:
            answer = self.ask('/completions', {
                'model': self.model, 'prompt': ids, 'echo': True,
                'logprobs': self.logprobs, 'max_tokens': 0})
            values = answer['choices'][0]['logprobs']['token_logprobs']
            result.append(numbers(values, len(ids)))
        return result


class Truth:
    """Prompts for one model and the reference's figures for them.

    Prompts of 500 random tokens are made until `wanted` of them have no
    margin too small for f32, and some with lengths around a block of 64.
    With `mtp` the figures are those of the multi-token prediction layer.
    """

    def __init__(self, path, wanted, seed, rounded, mtp=False, prompts=None,
                 fp8=False):
        self.mtp = mtp
        model = reference.Model(path)
        rng = np.random.default_rng([seed, 0x696473])
        self.prompts, self.logprobs, self.margins = [], [], []
        if prompts:
            for ids in prompts:
                self.add(model, ids)
        else:
            self.make(model, rng, wanted)
        self.bf16 = 0.0
        if rounded:
            model = reference.Model(path, bf16_inputs=True, fp8_inputs=fp8)
            rough = [self.values(reference.score(model, ids, mtp=mtp))
                     for ids in self.prompts]
            self.bf16 = np.abs(differences(rough, self.logprobs)).mean()

    def make(self, model, rng, wanted):
        def random(length):
            return rng.integers(0, model.config['vocab_size'],
                                length).tolist()
        for length in (1, 2, 63, 64, 65, 129):
            self.add(model, random(length))
        good = 0
        for _ in range(4 * wanted):
            good += self.add(model, random(500)) >= MIN_MARGIN
            if good == wanted:
                break

    def values(self, scored):
        if self.mtp:
            return np.array(scored.get('mtp_logprobs', [])[2:], float)
        return np.array(scored['logprobs'][1:], float)

    def add(self, model, ids):
        scored = reference.score(model, ids, mtp=self.mtp)
        margins = [scored[name] for name in ('expert_margin', 'group_margin')]
        self.prompts.append(ids)
        self.logprobs.append(self.values(scored))
        self.margins.append(min([m for m in margins if m is not None],
                                default=np.inf))
        return self.margins[-1]


def differences(one, other):
    return np.concatenate(one) - np.concatenate(other)


ROW = '{:24} {:5} {:>7} {:>6} {:>8} {:>9} {:>9} {:>9} {:>6}  {}'


def print_row(*cells):
    print(ROW.format(*cells), flush=True)


def judge(name, compute, engine, path, truth):
    """Prints one line of the table, returns whether it passes."""
    try:
        got = engine.score(path, compute, truth.prompts, truth.mtp)
    except (ValueError, KeyError, TypeError, OSError,
            subprocess.TimeoutExpired) as e:
        print_row(name, compute, *[''] * 7, f'FAIL: {e}')
        return False
    taken = [i for i, margin in enumerate(truth.margins)
             if compute != 'f32' or margin >= MIN_MARGIN]
    if not taken:
        print_row(name, compute, *[''] * 7, 'FAIL: every margin too small')
        return False
    delta = np.abs(differences([got[i] for i in taken],
                               [truth.logprobs[i] for i in taken]))
    ratio = ''
    if compute == 'f32':
        passed = delta.max() <= MAX_F32
    else:
        passed = delta.mean() <= MAX_RATIO * truth.bf16
        ratio = f'{delta.mean() / truth.bf16:.2f}'
    print_row(name, compute, f'{len(taken)}/{len(truth.prompts)}',
              len(delta),
              f'{min(truth.margins[i] for i in taken):.1e}',
              f'{delta.max():.2e}', f'{delta.mean():.2e}',
              f'{truth.bf16:.2e}' if compute == 'bf16' else '', ratio,
              'ok' if passed else 'FAIL')
    return passed


def judge_variants(name, compute, engine, path, prompts):
    """Ranks, threads and chunks must leave the output byte for byte."""
    try:
        outputs = [engine.run(path, compute, prompts, options)
                   for options in [[], *VARIANTS]]
    except (ValueError, OSError, subprocess.TimeoutExpired) as e:
        print_row(name, compute, *[''] * 7, f'FAIL: {e}')
        return False
    wrong = [' '.join(v) for v, o in zip(VARIANTS, outputs[1:])
             if o != outputs[0]]
    print_row(name, compute, *[''] * 7,
              'FAIL: differs with ' + ', '.join(wrong) if wrong
              else f'ok: {len(VARIANTS)} variants alike')
    return not wrong


def judge_quantised(name, compute, engine, path, truth, quantised):
    """The error against unquantised weights, beside the reference's."""
    try:
        got = engine.score(path, compute, truth.prompts)
    except (ValueError, OSError, subprocess.TimeoutExpired) as e:
        print_row(name, compute, *[''] * 7, f'FAIL: {e}')
        return False
    delta = np.abs(differences(got, truth.logprobs))
    least = np.abs(differences(quantised.logprobs, truth.logprobs)).mean()
    if compute == 'bf16':
        least = max(least, truth.bf16)
    passed = delta.mean() <= MAX_RATIO * least
    print_row(name, compute, f'{len(got)}/{len(got)}', len(delta), '',
              f'{delta.max():.2e}', f'{delta.mean():.2e}', f'{least:.2e}',
              f'{delta.mean() / least:.2f}', 'ok' if passed else 'FAIL')
    return passed


def compare_weights(name, path, args, engine, truth):
    """The checkpoint converted to each type of weights."""
    passed = True
    for weights in args.weights:
        what = f'{name} {weights}'
        with tempfile.TemporaryDirectory() as temporary:
            out = os.path.join(temporary, 'converted')
            done = subprocess.run(
                [engine.path, 'convert', '--model', path, '--weights',
                 weights, out], capture_output=True, text=True,
                timeout=engine.timeout, check=False)
            if done.returncode != 0:
                print_row(what, '', *[''] * 7, f'FAIL: {done.stderr}')
                passed = False
                continue
            quantised = Truth(out, 0, 0, False, prompts=truth.prompts)
            passed &= judge(what, 'f32', engine, out, quantised)
            for compute in args.compute:
                passed &= judge_quantised(what, compute, engine, out, truth,
                                          quantised)
            if args.long:
                passed &= judge_variants(what, args.compute[-1], engine, out,
                                         truth.prompts)
    return passed


def compare(name, path, args, engine):
    truth = Truth(path, 6 if args.long else 3, args.seed,
                  'bf16' in args.compute, fp8=args.fp8_inputs)
    passed = True
    for compute in args.compute:
        passed &= judge(name, compute, engine, path, truth)
        if args.long and isinstance(engine, Program):
            passed &= judge_variants(name, compute, engine, path,
                                     truth.prompts)
    if args.weights and isinstance(engine, Program):
        passed &= compare_weights(name, path, args, engine, truth)
    return passed


def compare_mtp(name, path, args, engine):
    with open(os.path.join(path, 'config.json'), encoding='utf-8') as f:
        if not json.load(f).get('num_nextn_predict_layers'):
            return True
    truth = Truth(path, 3 if args.long else 1, args.seed,
                  'bf16' in args.compute, mtp=True, fp8=args.fp8_inputs)
    return all([judge(name + ' mtp', compute, engine, path, truth)
                for compute in args.compute])


def write_model(directory, style, seed, options, fields):
    config = styles.style(style)
    config.update(fields)
    path = os.path.join(directory, f'{style}-{seed}')
    make_checkpoint.write_checkpoint(path, config, seed, **options)
    return path


def arguments():
    parser = argparse.ArgumentParser(
        description='Compares an engine with the float64 reference.')
    parser.add_argument('engine', nargs='?', help='path of llm-engine')
    parser.add_argument('models', nargs='*', metavar='MODEL')
    parser.add_argument('--url', help='a server instead of a program')
    parser.add_argument('--model-name', help='the name to ask the server for')
    parser.add_argument('--key', help='its API key')
    parser.add_argument('--logprobs', type=int, default=0, choices=(0, 1))
    parser.add_argument('--compute', default='f32,bf16',
                        type=lambda text: text.split(','))
    parser.add_argument('--weights', default='',
                        type=lambda text: text.split(',') if text else [],
                        help='types to convert to: fp8,int8,int4,bf16')
    parser.add_argument('--fp8-inputs', action='store_true',
                        help='FP8 weights may be multiplied with FP8 inputs')
    parser.add_argument('--seed', type=int, default=1, help='of the prompts')
    parser.add_argument('--long', action='store_true')
    parser.add_argument('--keep', metavar='DIR',
                        help='write the random checkpoints there and keep')
    parser.add_argument('--timeout', type=float, default=300)

    rest = sys.argv[1:]
    options = []
    if '--' in rest:
        options = rest[rest.index('--') + 1:]
        rest = rest[:rest.index('--')]
    args = parser.parse_args(rest)
    args.options = options
    if args.url:
        # There is no ENGINE then: the first argument is the model.
        args.models = [args.engine] if args.engine else []
        if len(args.models) != 1 or len(args.compute) != 1:
            parser.error('--url needs one MODEL and one --compute')
    elif not args.engine:
        parser.error('ENGINE or --url is needed')
    if not set(args.compute) <= {'f32', 'bf16'}:
        parser.error('--compute takes f32 and bf16')
    return args


def main():
    args = arguments()
    began = time.time()
    if args.url:
        engine = Server(args.url, args.model_name, args.key, args.logprobs,
                        args.timeout)
    else:
        engine = Program(args.engine, args.options, args.timeout)
    print_row('model', 'mode', 'prompts', 'tokens', 'margin', 'max |d|',
              'mean |d|', 'ref', 'ratio', '')
    passed = True
    for path in args.models:
        name = os.path.basename(os.path.abspath(path))
        passed &= compare(name, path, args, engine)
        if isinstance(engine, Program):
            passed &= compare_mtp(name, path, args, engine)
    if not args.models:
        with tempfile.TemporaryDirectory() as temporary:
            for style, seed, options, fields in \
                    LONG if args.long else QUICK:
                path = write_model(args.keep or temporary, style, seed,
                                   options, fields)
                name = os.path.basename(path)
                passed &= compare(name, path, args, engine)
                passed &= compare_mtp(name, path, args, engine)
    print(f'{"all passed" if passed else "FAILED"} in '
          f'{time.time() - began:.0f} s')
    return 0 if passed else 1


if __name__ == '__main__':
    sys.exit(main())
