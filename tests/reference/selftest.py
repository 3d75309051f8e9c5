#!/usr/bin/python3
"""Checks of the reference itself: hand-computed numbers and second paths."""

import contextlib
import http.server
import json
import math
import os
import shutil
import sys
import tempfile
import threading
import unittest

import one_thread  # noqa: F401 (before numpy)
import numpy as np

import compare
import defects
import make_checkpoint
import numerics
import reference
import styles

V3 = {'qk_nope_head_dim': 128, 'qk_rope_head_dim': 64,
      'rope_scaling': styles.YARN}
MSCALE_LITE = {**styles.YARN, 'mscale': 0.707, 'mscale_all_dim': 0.707}


def logit(p):
    p = np.asarray(p, float)
    return np.log(p / (1 - p))


class Numbers(unittest.TestCase):

    def test_e4m3_decode(self):
        # An independent definition: each code is one step above the one
        # before, and the step doubles with the exponent, 2^-9 at first.
        value = 0.0
        for code in range(127):
            self.assertEqual(numerics.E4M3[code], value)
            self.assertEqual(numerics.E4M3[code + 128], -value)
            value += 2.0 ** (max(code >> 3, 1) - 10)
        self.assertTrue(np.isnan(numerics.E4M3[[127, 255]]).all())
        self.assertEqual(numerics.E4M3[0x7e], 448.0)
        self.assertEqual(numerics.E4M3[0x38], 1.0)
        self.assertEqual(numerics.E4M3[0x01], 2.0 ** -9)
        self.assertTrue(math.copysign(1, numerics.E4M3[0x80]) < 0)

    def test_e4m3_encode(self):
        codes = np.array([c for c in range(256) if c & 127 != 127], np.uint8)
        values = numerics.E4M3[codes]
        self.assertTrue((numerics.e4m3_encode(values) == codes).all())
        middle = (numerics.E4M3[:126] + numerics.E4M3[1:127]) / 2
        ties = numerics.e4m3_encode(middle)
        self.assertTrue((ties % 2 == 0).all())
        self.assertTrue((np.abs(ties - np.arange(126.5)[:126]) <= 1).all())
        self.assertEqual(numerics.e4m3_encode([1e9, -460.0]).tolist(),
                         [0x7e, 0xfe])

    def test_bf16(self):
        codes = np.arange(65536).astype(np.uint16)
        codes = codes[(codes & 0x7f80) != 0x7f80]
        values = numerics.bf16_decode(codes)
        self.assertTrue((numerics.bf16_encode(values) == codes).all())
        self.assertTrue((numerics.round_bf16(values) == values).all())

    def test_bf16_ties(self):
        step = 2.0 ** -7
        given = np.array([1 + step / 2, 1 + 3 * step / 2, -1 - step / 2,
                          1 + step / 2 + 2.0 ** -40, 2 - step / 4,
                          1 + 3 * step / 2 - 2.0 ** -45, 0.0, 3e38])
        right = [1.0, 1 + 2 * step, -1.0, 1 + step, 2.0, 1 + step, 0.0]
        rounded = numerics.round_bf16(given)
        self.assertEqual(rounded[:-1].tolist(), right)
        self.assertLess(abs(rounded[-1] / 3e38 - 1), 2.0 ** -8)

    def test_block_scales(self):
        # Each block constant: codes are all 448, scales tell the blocks.
        weight = numerics.spread_blocks(
            np.array([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]]), (130, 259))
        codes, scale = numerics.fp8_quantise(weight)
        self.assertEqual(scale.shape, (2, 3))
        self.assertTrue((codes == 0x7e).all())
        self.assertTrue(np.allclose(scale * 448, [[1, 2, 3], [4, 5, 6]]))
        back = numerics.fp8_dequantise(codes, scale)
        self.assertEqual(back.shape, weight.shape)
        self.assertTrue(np.allclose(back, weight, rtol=1e-7))
        self.assertEqual([round(back[i]) for i in
                          ((0, 127), (0, 128), (127, 258), (128, 0))],
                         [1, 2, 3, 4])

    def test_quantised_weights_are_near(self):
        weight = np.random.default_rng(1).standard_normal((200, 300))
        back = numerics.fp8_dequantise(*numerics.fp8_quantise(weight))
        step = np.maximum(np.abs(weight) / 16, np.abs(weight).max() / 448
                          * 2.0 ** -10)
        self.assertTrue((np.abs(back - weight) <= step * 1.001).all())


class Formulas(unittest.TestCase):

    def test_yarn(self):
        self.assertEqual(reference.yarn_range(64, 10000, styles.YARN),
                         (10, 23))
        frequency, multiplier = reference.rope_frequencies(
            64, 10000, styles.YARN)
        plain, _ = reference.rope_frequencies(64, 10000, None)
        self.assertEqual(multiplier, 1.0)
        self.assertEqual(frequency[:11].tolist(), plain[:11].tolist())
        self.assertTrue(np.allclose(frequency[23:], plain[23:] / 40))
        # Pair 16 is 6/13 on its way: 10000^-0.5 (6/13/40 + 7/13).
        self.assertAlmostEqual(frequency[16], 0.0055, 15)

    def test_softmax_scale(self):
        scale = reference.softmax_scale
        self.assertAlmostEqual(scale(V3), 0.1352338, 7)
        self.assertAlmostEqual(
            scale({**V3, 'rope_scaling': MSCALE_LITE}), 0.1147214, 7)
        self.assertAlmostEqual(
            scale({**V3, 'rope_scaling': None}), 0.0721688, 7)

    def test_rope(self):
        frequency, multiplier = reference.rope_frequencies(4, 10000, None)
        x = np.array([[1.0, 2.0, 3.0, 4.0]] * 3)
        y = reference.rope(x, np.array([0, 1, 2]), frequency, multiplier)
        self.assertEqual(y[0].tolist(), [1, 2, 3, 4])
        # cos 1 = 0.5403023, sin 1 = 0.8414710, of 0.01: 0.99995, 0.0099998
        right = [0.5403023 - 2 * 0.8414710, 0.8414710 + 2 * 0.5403023,
                 3 * 0.99995 - 4 * 0.0099998, 3 * 0.0099998 + 4 * 0.99995]
        self.assertTrue(np.allclose(y[1], right, atol=1e-6))
        heads = reference.rope(x[:, None].repeat(2, 1), np.arange(3),
                               frequency, multiplier)
        self.assertTrue((heads == y[:, None]).all())

    def test_rope_sees_distances_only(self):
        frequency, _ = reference.rope_frequencies(12, 10000, styles.YARN)
        rng = np.random.default_rng(2)
        q, k = rng.standard_normal((2, 12))

        def product(i, j):
            a = reference.rope(q[None], np.array([i]), frequency, 1.0)
            b = reference.rope(k[None], np.array([j]), frequency, 1.0)
            return float((a @ b.T)[0, 0])

        self.assertAlmostEqual(product(7, 3), product(1007, 1003), 11)
        self.assertNotAlmostEqual(product(7, 3), product(7, 4), 3)

    def test_norm(self):
        y = reference.rms_norm(np.array([3.0, 4.0]), np.array([1.0, 2.0]),
                               0.0)
        self.assertTrue(np.allclose(y, [3 / 12.5 ** 0.5, 8 / 12.5 ** 0.5]))
        self.assertEqual(
            reference.rms_norm(np.zeros(2), np.ones(2), 1e-6).tolist(),
            [0, 0])

    def test_silu(self):
        self.assertAlmostEqual(float(reference.silu(np.array(2.0))),
                               1.7615942, 7)
        self.assertEqual(float(reference.silu(np.array(-1e4))), 0.0)

    def test_softmax(self):
        x = np.random.default_rng(3).standard_normal((4, 1000)) * 300
        self.assertTrue(np.allclose(reference.softmax(x).sum(-1), 1.0))
        total = np.exp(reference.log_softmax(x)).sum(-1)
        self.assertTrue(np.allclose(total, 1.0, rtol=1e-13))
        half = reference.log_softmax(np.array([[0.0, 0.0]]))
        self.assertTrue(np.allclose(half, -math.log(2)))


class Gates(unittest.TestCase):
    """Eight experts, three taken, by hand."""

    def taken(self, logits, bias=None, **config):
        config = {'num_experts_per_tok': 3, 'n_group': 1, 'topk_group': 1,
                  'norm_topk_prob': False, 'routed_scaling_factor': 1.0,
                  **config}
        experts, weight, margin, group_margin = reference.gate(
            config, np.asarray([logits]), bias)
        return experts[0].tolist(), weight[0], margin, group_margin

    def test_v3(self):
        # Choice scores .9 .1 | .65 .6 | .7 .58 | .7 .05: groups score 1.0,
        # 1.25, 1.28, .75, so the best expert is not even looked at.
        score = [.9, .1, .5, .5, .2, .6, .7, .05]
        bias = np.array([0, 0, .15, .1, .5, -.02, 0, 0])
        experts, weight, margin, group_margin = self.taken(
            logit(score), bias, scoring_func='sigmoid',
            topk_method='noaux_tc', n_group=4, topk_group=2,
            norm_topk_prob=True, routed_scaling_factor=2.5)
        self.assertEqual(experts, [4, 2, 3])
        self.assertTrue(np.allclose(weight, [.5 / 1.2, 1.25 / 1.2,
                                             1.25 / 1.2]))
        self.assertAlmostEqual(margin, .02, 12)
        self.assertAlmostEqual(group_margin, .25, 12)

    def test_v3_negative_scores(self):
        # A dropped group must not win over choice scores below zero.
        score, bias = [.9, .9, .1, .2], np.array([-2, -2, -.5, -.5])
        experts, _, _, _ = self.taken(
            logit(score), bias, scoring_func='sigmoid',
            topk_method='noaux_tc', n_group=2, topk_group=1,
            num_experts_per_tok=2)
        self.assertEqual(experts, [3, 2])

    def test_v2(self):
        # Groups score their largest: .3 .1 .2 .13.
        score = [.3, .02, .1, .1, .05, .2, .13, .1]
        experts, weight, margin, group_margin = self.taken(
            np.log(score) + 5, scoring_func='softmax',
            topk_method='group_limited_greedy', n_group=4, topk_group=2,
            routed_scaling_factor=16.0)
        self.assertEqual(experts, [0, 5, 4])
        self.assertTrue(np.allclose(weight, [4.8, 3.2, .8]))
        self.assertAlmostEqual(margin, .03, 12)
        self.assertAlmostEqual(group_margin, .07, 12)

    def test_v2lite(self):
        score = [.3, .02, .1, .11, .05, .2, .13, .09]
        experts, weight, margin, group_margin = self.taken(
            np.log(score), scoring_func='softmax', topk_method='greedy')
        self.assertEqual(experts, [0, 5, 6])
        self.assertTrue(np.allclose(weight, [.3, .2, .13]))
        self.assertAlmostEqual(margin, .02, 12)
        self.assertEqual(group_margin, np.inf)

    def test_moonlight(self):
        score = [.9, .1, .5, .45, .2, .6, .7, .05]
        bias = np.array([-.5, 0, 0, 0, .5, 0, 0, 0])
        experts, weight, _, _ = self.taken(
            logit(score), bias, scoring_func='sigmoid',
            topk_method='noaux_tc', norm_topk_prob=True,
            routed_scaling_factor=2.446)
        self.assertEqual(experts, [4, 6, 5])
        self.assertTrue(np.allclose(weight, np.array([.2, .7, .6])
                                    * 2.446 / 1.5))

    def test_ties(self):
        experts, _, margin, _ = self.taken(
            np.zeros(8), scoring_func='softmax', topk_method='greedy')
        self.assertEqual(experts, [0, 1, 2])
        self.assertEqual(margin, 0.0)


class StepByStep:
    """A second path: one token at a time, absorbed attention over cached
    latents, one expert at a time."""

    def __init__(self, model):
        self.m, self.c = model, model.config
        self.cache = {}

    def weight(self, name):
        return self.m.weights.get(name + '.weight')

    def norm(self, x, name):
        mean = sum(v * v for v in x) / len(x)
        return x * self.weight(name) / math.sqrt(mean + self.m.eps)

    def rotate(self, x, position):
        frequency, multiplier = self.m.frequency
        pairs = (x[0::2] + 1j * x[1::2]) * multiplier \
            * np.exp(1j * position * frequency)
        return np.stack([pairs.real, pairs.imag], -1).ravel()

    def attention(self, x, at, position):
        c = self.c
        heads, latent = c['num_attention_heads'], c['kv_lora_rank']
        nope, value = c['qk_nope_head_dim'], c['v_head_dim']
        kv = self.weight(at + 'kv_a_proj_with_mqa') @ x
        rows = self.cache.setdefault(at, [])
        rows.append((self.norm(kv[:latent], at + 'kv_a_layernorm'),
                     self.rotate(kv[latent:], position)))
        if c.get('q_lora_rank'):
            x = self.norm(self.weight(at + 'q_a_proj') @ x,
                          at + 'q_a_layernorm')
            q = self.weight(at + 'q_b_proj') @ x
        else:
            q = self.weight(at + 'q_proj') @ x
        w = self.weight(at + 'kv_b_proj').reshape(heads, -1, latent)
        out = []
        for head, mine in enumerate(q.reshape(heads, -1)):
            absorbed = w[head, :nope].T @ mine[:nope]
            key = self.rotate(mine[nope:], position)
            score = np.array([absorbed @ l + key @ k for l, k in rows])
            p = np.exp(score * self.m.scale)
            mixed = sum(a * l for a, (l, _) in zip(p / p.sum(), rows))
            out.append(w[head, nope:] @ mixed)
        return self.weight(at + 'o_proj') @ np.concatenate(out)

    def mlp(self, x, at):
        g = self.weight(at + 'gate_proj') @ x
        u = self.weight(at + 'up_proj') @ x
        return self.weight(at + 'down_proj') @ (g / (1 + np.exp(-g)) * u)

    def feed_forward(self, x, at, layer):
        if layer < self.c['first_k_dense_replace']:
            return self.mlp(x, at)
        bias = None
        if self.c['topk_method'] == 'noaux_tc':
            bias = self.m.weights.get(at + 'gate.e_score_correction_bias')
        experts, weight, _, _ = reference.gate(
            self.c, (self.weight(at + 'gate') @ x)[None], bias)
        return sum(w * self.mlp(x, f'{at}experts.{e}.')
                   for e, w in zip(experts[0], weight[0])) \
            + self.mlp(x, at + 'shared_experts.')

    def block(self, h, layer, position):
        at = f'model.layers.{layer}.'
        h = h + self.attention(self.norm(h, at + 'input_layernorm'),
                               at + 'self_attn.', position)
        return h + self.feed_forward(
            self.norm(h, at + 'post_attention_layernorm'), at + 'mlp.',
            layer)

    def logits(self, ids):
        for position, token in enumerate(ids):
            h = self.weight('model.embed_tokens')[token]
            for layer in range(self.c['num_hidden_layers']):
                h = self.block(h, layer, position)
            yield self.weight('lm_head') @ self.norm(h, 'model.norm')


class Models(unittest.TestCase):

    @classmethod
    def setUpClass(cls):
        cls.directory = tempfile.TemporaryDirectory()

    @classmethod
    def tearDownClass(cls):
        cls.directory.cleanup()

    def model(self, style, **options):
        path = os.path.join(self.directory.name, style + repr(options))
        make_checkpoint.write_checkpoint(path, styles.style(style),
                                         **options)
        return reference.Model(path)

    def ids(self, model, count, seed=4):
        return np.random.default_rng(seed).integers(
            0, model.config['vocab_size'], count)

    def test_absorbed_equals_expanded(self):
        for style in ('v3', 'v2lite', 'v2', 'moonlight', 'fp8'):
            model = self.model(style)
            ids = self.ids(model, 25)
            expanded = model.logits(model.hidden(ids))
            absorbed = np.stack(list(StepByStep(model).logits(ids)))
            self.assertLess(np.abs(absorbed - expanded).max(), 1e-12, style)

    def test_mtp_is_one_block(self):
        model = self.model('v3')
        c, ids = model.config, self.ids(model, 12)
        h = model.hidden(ids)
        drafts = model.mtp_logits(h, ids)
        step, layer = StepByStep(model), c['num_hidden_layers']
        at = f'model.layers.{layer}.'
        for i in range(len(ids) - 1):
            embedding = step.weight('model.embed_tokens')[ids[i + 1]]
            z = step.weight(at + 'eh_proj') @ np.concatenate([
                step.norm(embedding, at + 'enorm'),
                step.norm(step.norm(h[i], 'model.norm'), at + 'hnorm')])
            z = step.block(z, layer, i)
            z = step.weight(at + 'shared_head.head') @ step.norm(
                z, at + 'shared_head.norm')
            self.assertLess(np.abs(z - drafts[i]).max(), 1e-12)

    def test_probabilities(self):
        model = self.model('v3')
        ids = self.ids(model, 9)
        every = reference.score(model, ids, model.config['vocab_size'])
        for i, row in enumerate(every['top']):
            self.assertAlmostEqual(sum(math.exp(p) for _, p in row), 1, 12)
            self.assertEqual(row, sorted(row, key=lambda t: -t[1]))
            if i + 1 < len(ids):
                self.assertEqual(dict(row)[ids[i + 1]],
                                 every['logprobs'][i + 1])
        self.assertIsNone(every['logprobs'][0])
        self.assertEqual([sum(n) for n in every['expert_load']],
                         [9 * model.config['num_experts_per_tok']] * 3)

    def test_causal(self):
        model = self.model('v2')
        ids = self.ids(model, 30)
        other = ids.copy()
        other[20] = (other[20] + 1) % model.config['vocab_size']
        one = reference.score(model, ids)['logprobs']
        two = reference.score(model, other)['logprobs']
        self.assertTrue(np.allclose(one[1:20], two[1:20], atol=1e-12))
        self.assertTrue((np.abs(np.subtract(one[20:], two[20:]))
                         > 1e-6).all())

    def test_greedy(self):
        model = self.model('moonlight')
        ids = self.ids(model, 5).tolist()
        more = reference.greedy(model, ids, 4)
        top = reference.score(model, ids + more, 1)['top']
        self.assertEqual([row[0][0] for row in top[4:8]], more)

    def test_bf16_inputs(self):
        exact, ids = self.model('v2lite'), self.ids(self.model('v2lite'), 50)
        rounded = reference.Model(
            os.path.join(self.directory.name, 'v2lite{}'), True)
        delta = np.abs(np.subtract(
            reference.score(exact, ids)['logprobs'][1:],
            reference.score(rounded, ids)['logprobs'][1:]))
        self.assertTrue(1e-4 < delta.mean() < 0.1)

    def test_shards_do_not_matter(self):
        ids = [1, 2, 3, 500, 1002]
        scores = [reference.score(self.model('v3', shards=n, order=order),
                                  ids)
                  for n, order in ((1, 'dtype'), (2, 'dtype'), (7, 'name'))]
        self.assertEqual(scores[0], scores[1])
        self.assertEqual(scores[0], scores[2])

    def test_dtype(self):
        wide, narrow = self.model('v3', dtype='f32'), self.model('v3')
        name = 'model.layers.1.mlp.gate.weight'
        self.assertTrue((numerics.round_bf16(wide.weights.load(name))
                         == narrow.weights.load(name)).all())
        self.assertTrue((wide.weights.load(name)
                         != narrow.weights.load(name)).any())

    def test_defects_are_defects(self):
        # Each must differ from the sound checkpoint in some file.
        for style in sorted({s for _, _, s in defects.DEFECTS.values()}):
            sound = os.path.join(self.directory.name, 'sound')
            defects.write_sound(sound, style)
            whole = contents(sound)
            for kind, (spoil, _, its_style) in defects.DEFECTS.items():
                if its_style != style:
                    continue
                path = os.path.join(self.directory.name, kind)
                shutil.copytree(sound, path)
                spoil(path)
                self.assertNotEqual(contents(path), whole, kind)
                shutil.rmtree(path)


class Off:
    """An engine that is off by a given distance in one value."""

    def __init__(self, truth, by):
        self.truth, self.by = truth, by

    def score(self, _path, _compute, _prompts, _mtp):
        values = [row.copy() for row in self.truth.logprobs]
        values[-1][7] += self.by
        return values


class Comparison(unittest.TestCase):

    def test_numbers(self):
        self.assertEqual(compare.numbers('[null, -1, -2.5]', 3).tolist(),
                         [-1, -2.5])
        for text in ('[null, -1]', '[-1, -1, -1]', '[null, NaN, -1]',
                     '[null, "a", -1]', '[null, null, -1]'):
            with self.assertRaises(ValueError):
                compare.numbers(text, 3)

    def test_judge(self):
        with tempfile.TemporaryDirectory() as path, \
                open(os.devnull, 'w', encoding='utf-8') as null, \
                contextlib.redirect_stdout(null):
            make_checkpoint.write_checkpoint(path, styles.style('v2lite'))
            truth = compare.Truth(path, 1, 1, True)

            def verdict(compute, by):
                return compare.judge('', compute, Off(truth, by), path,
                                     truth)
            total = sum(len(row) for row in truth.logprobs)
            self.assertTrue(verdict('f32', 0.9e-4))
            self.assertFalse(verdict('f32', 1.1e-4))
            self.assertTrue(verdict('bf16', 1.4 * truth.bf16 * total))
            self.assertFalse(verdict('bf16', 1.6 * truth.bf16 * total))
            truth.margins = [0.9e-6] * len(truth.margins)
            self.assertFalse(verdict('f32', 0.0))


class Completions(http.server.BaseHTTPRequestHandler):
    """Answers as an OpenAI server that scores prompts would."""

    def do_GET(self):
        self.answer(200, {'data': [{'id': 'falcon'}]})

    def do_POST(self):
        body = json.loads(self.rfile.read(int(
            self.headers['Content-Length'])))
        if body['model'] != 'falcon' or body['max_tokens'] != 0 \
                or body['echo'] is not True or len(body['prompt']) == 1:
            self.answer(400, {'error': {'message': 'not like this'}})
            return
        values = [None] + [-0.5 * i for i in body['prompt'][1:]]
        self.answer(200, {'choices': [
            {'logprobs': {'token_logprobs': values}}]})

    def answer(self, status, value):
        data = json.dumps(value).encode()
        self.send_response(status)
        self.send_header('Content-Length', str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_):
        pass


class Clients(unittest.TestCase):

    def test_server(self):
        server = http.server.HTTPServer(('127.0.0.1', 0), Completions)
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            url = f'http://127.0.0.1:{server.server_address[1]}/v1/'
            client = compare.Server(url, None, None, 0, 10)
            self.assertEqual(client.model, 'falcon')
            rows = client.score(None, None, [[4, 2, 6], [1, 1]])
            self.assertEqual([row.tolist() for row in rows],
                             [[-1, -3], [-0.5]])
            with self.assertRaisesRegex(ValueError, '400.*not like this'):
                client.score(None, None, [[1]])
        finally:
            server.shutdown()
            thread.join()
            server.server_close()

    def test_program(self):
        with tempfile.TemporaryDirectory() as path:
            program = os.path.join(path, 'engine')
            with open(program, 'w', encoding='utf-8') as f:
                f.write('#!/bin/sh\n[ "$1 $2 $4" = "score --model '
                        '--compute" ] || exit 3\ncat "$7"\n'
                        '[ "$8" != --bad ] || { echo why >&2; exit 1; }\n')
            os.chmod(program, 0o755)
            engine = compare.Program(program, [], 10)
            self.assertEqual(engine.run('M', 'f32', [[1, 2], [3]]),
                             '[1, 2]\n[3]\n')
            with self.assertRaisesRegex(ValueError, 'status 1: why'):
                engine.run('M', 'f32', [[1]], ['--bad'])


def contents(path):
    found = {}
    for name in os.listdir(path):
        found[name] = None
        if os.path.isfile(os.path.join(path, name)):
            with open(os.path.join(path, name), 'rb') as f:
                found[name] = f.read()
    return found


if __name__ == '__main__':
    sys.exit(unittest.main())
