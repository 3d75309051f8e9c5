#!/usr/bin/python3
"""A float64 forward pass of the DeepSeek-V2/V3 family, for comparison.

Written from the published description of the architecture, and apart from
the engine: attention is *expanded* (keys and values are built per head and
position), a whole sequence is computed at once, nothing is blocked, cached
or fused. It serves as the truth that the engine's arithmetic is held
against, so it is meant to be read.

    reference.py MODEL [--ids FILE] [--bf16-inputs] [--top N] [--mtp]
                       [--greedy N] [--dump DIR]

The input has one JSON array of token ids a line, the output one JSON object
for each:

    logprobs      natural logarithms of softmax, null for the first token.
                  The softmax is over all rows of lm_head, rows without a
                  token included, as other implementations do it.
    expert_margin smallest difference met between the choice scores of the
                  last expert taken and the first one not taken
    group_margin  the same for groups; null where nothing is left out
    expert_load   per MoE layer, how often each expert was taken
    top           per position, the N likeliest next tokens [[id, logprob]]
    mtp_logprobs  with --mtp: log-probability of each token, from the third,
                  by the MTP layer, which sees the two before it and all
                  hidden states up to the second
    greedy        with --greedy N: the N likeliest tokens that follow

A top-k flips where a margin is smaller than the arithmetic's error; then
two right implementations differ by far more than rounding.

--bf16-inputs rounds both inputs of every matrix product to BF16 (weights
and activations, the gate, attention's score and value products); products,
sums and everything else stay in float64. FP8 weights are used through their
dequantised values, in this mode rounded to BF16 after that. Model() takes
fp8_inputs, too: where a weight is FP8 the other input is rounded to FP8, with
a scale for 128 elements, and the weight is not rounded to BF16.
"""

import argparse
import json
import os
import sys

import one_thread  # noqa: F401 (before numpy)
import numpy as np

import numerics
import styles
import weights


def rms_norm(x, weight, eps):
    return weight * x / np.sqrt(np.mean(x * x, axis=-1, keepdims=True) + eps)


def silu(x):
    # exp of a large positive number only overflows to the right limit, 0.
    with np.errstate(over='ignore'):
        return x / (1.0 + np.exp(-x))


def sigmoid(x):
    with np.errstate(over='ignore'):
        return 1.0 / (1.0 + np.exp(-x))


def softmax(x):
    e = np.exp(x - x.max(axis=-1, keepdims=True))
    return e / e.sum(axis=-1, keepdims=True)


def log_softmax(x):
    x = x - x.max(axis=-1, keepdims=True)
    return x - np.log(np.exp(x).sum(axis=-1, keepdims=True))


# Rotary embedding with YaRN.

def yarn_range(dim, theta, scaling):
    """First and last pair of the ramp between the two kinds of pairs."""
    def pair(rotations):
        length = scaling['original_max_position_embeddings']
        return dim * np.log(length / (rotations * 2 * np.pi)) \
            / (2 * np.log(theta))
    low = np.floor(pair(scaling.get('beta_fast', 32)))
    high = np.ceil(pair(scaling.get('beta_slow', 1)))
    low, high = max(low, 0), min(high, dim - 1)
    return low, high if high != low else high + 0.001


def yarn_mscale(factor, mscale):
    return 0.1 * mscale * np.log(factor) + 1.0 if factor > 1 else 1.0


def is_yarn(scaling):
    if not scaling:
        return False
    kind = scaling.get('type', scaling.get('rope_type'))
    if kind != 'yarn':
        raise SystemExit(f'rope_scaling of type {kind}')
    return True


def rope_frequencies(dim, theta, scaling):
    """Returns (angle per position of each pair, multiplier of sin, cos)."""
    pairs = np.arange(dim // 2)
    frequency = float(theta) ** (-2.0 * pairs / dim)
    if not is_yarn(scaling):
        return frequency, 1.0
    factor = scaling['factor']
    low, high = yarn_range(dim, theta, scaling)
    ramp = np.clip((pairs - low) / (high - low), 0, 1)
    frequency = frequency / factor * ramp + frequency * (1 - ramp)
    return frequency, yarn_mscale(factor, scaling.get('mscale', 1)) \
        / yarn_mscale(factor, scaling.get('mscale_all_dim', 0))


def softmax_scale(config):
    scale = (config['qk_nope_head_dim'] + config['qk_rope_head_dim']) ** -0.5
    scaling = config.get('rope_scaling')
    if is_yarn(scaling):
        scale *= yarn_mscale(scaling['factor'],
                             scaling.get('mscale_all_dim', 0)) ** 2
    return scale


def rope(x, positions, frequency, multiplier):
    """Rotates adjacent elements of x [positions][...][dim] as pairs."""
    angle = np.outer(positions, frequency)
    angle = angle.reshape(angle.shape[:1] + (1,) * (x.ndim - 2)
                          + angle.shape[1:])
    cos, sin = np.cos(angle) * multiplier, np.sin(angle) * multiplier
    out = np.empty_like(x)
    out[..., 0::2] = x[..., 0::2] * cos - x[..., 1::2] * sin
    out[..., 1::2] = x[..., 0::2] * sin + x[..., 1::2] * cos
    return out


# The gate.

def top(scores, count):
    """Indices of the `count` largest per row, the lower one of a tie first,
    and the smallest distance to the next one (inf if none is left out)."""
    order = np.argsort(-scores, axis=-1, kind='stable')
    if count == scores.shape[-1]:
        return order, np.inf
    edge = np.take_along_axis(scores, order[:, count - 1:count + 1], -1)
    with np.errstate(invalid='ignore'):
        margin = np.nanmin(edge[:, 0] - edge[:, 1])
    return order[:, :count], margin


def group_scores(config, choice):
    """Group scores [rows][groups] of choice scores [rows][experts]."""
    groups = choice.reshape(len(choice), config['n_group'], -1)
    if config['topk_method'] == 'noaux_tc':
        return np.sort(groups, axis=-1)[..., -2:].sum(axis=-1)
    return groups.max(axis=-1)


def gate(config, logits, bias):
    """Returns (experts, weights [rows][top k], expert and group margin)."""
    score = sigmoid(logits) if config['scoring_func'] == 'sigmoid' \
        else softmax(logits)
    choice = score if bias is None else score + bias
    group_margin = np.inf
    if config['topk_method'] != 'greedy' and config['n_group'] > 1:
        taken, group_margin = top(group_scores(config, choice),
                                  config['topk_group'])
        allowed = np.zeros((len(choice), config['n_group']), bool)
        np.put_along_axis(allowed, taken, True, -1)
        size = choice.shape[1] // config['n_group']
        choice = np.where(np.repeat(allowed, size, 1), choice, -np.inf)
    experts, margin = top(choice, config['num_experts_per_tok'])
    weight = np.take_along_axis(score, experts, -1)
    if config['norm_topk_prob']:
        weight = weight / (weight.sum(axis=-1, keepdims=True) + 1e-20)
    return experts, weight * config['routed_scaling_factor'], margin, \
        group_margin


# The model.

class Model:
    def __init__(self, path, bf16_inputs=False, dump=None, fp8_inputs=False):
        with open(os.path.join(path, 'config.json'), encoding='utf-8') as f:
            self.config = json.load(f)
        self.weights = weights.Weights(path)
        self.bf16, self.dump, self.fp8 = bf16_inputs, dump, fp8_inputs
        self.eps = self.config['rms_norm_eps']
        self.frequency = rope_frequencies(
            self.config['qk_rope_head_dim'], self.config['rope_theta'],
            self.config.get('rope_scaling'))
        self.scale = softmax_scale(self.config)
        self.reset()

    def reset(self):
        self.expert_margin = self.group_margin = np.inf
        self.loads = {}

    def inputs(self, x):
        return numerics.round_bf16(x) if self.bf16 else x

    def linear(self, x, name):
        name += '.weight'
        if self.fp8 and self.weights.is_fp8(name):
            return numerics.round_fp8(x) @ self.weights.get(name).T
        return self.inputs(x) @ self.weights.get(name, self.bf16).T

    def norm(self, x, name):
        return rms_norm(x, self.weights.get(name + '.weight'), self.eps)

    def queries(self, x, at):
        """Returns [positions][heads][nope | rope], rotated."""
        c = self.config
        if c.get('q_lora_rank'):
            x = self.norm(self.linear(x, at + 'q_a_proj'),
                          at + 'q_a_layernorm')
            q = self.linear(x, at + 'q_b_proj')
        else:
            q = self.linear(x, at + 'q_proj')
        q = q.reshape(len(x), c['num_attention_heads'], -1)
        nope = c['qk_nope_head_dim']
        rotated = rope(q[..., nope:], np.arange(len(x)), *self.frequency)
        return np.concatenate([q[..., :nope], rotated], -1)

    def latents(self, x, at):
        """Returns what is cached: normalised latents and rotated keys."""
        latent = self.config['kv_lora_rank']
        kv = self.linear(x, at + 'kv_a_proj_with_mqa')
        return self.norm(kv[:, :latent], at + 'kv_a_layernorm'), \
            rope(kv[:, latent:], np.arange(len(x)), *self.frequency)

    def attention(self, x, at):
        c = self.config
        heads, nope = c['num_attention_heads'], c['qk_nope_head_dim']
        q = self.inputs(self.queries(x, at))
        latent, shared_key = self.latents(x, at)
        kv = self.linear(latent, at + 'kv_b_proj')
        kv = kv.reshape(len(x), heads, nope + c['v_head_dim'])
        future = np.triu(np.full((len(x), len(x)), -np.inf), 1)
        out = np.empty((len(x), heads, c['v_head_dim']))
        for head in range(heads):
            k = np.concatenate([kv[:, head, :nope], shared_key], -1)
            score = q[:, head] @ self.inputs(k).T * self.scale
            weight = softmax(score + future)
            out[:, head] = self.inputs(weight) \
                @ self.inputs(kv[:, head, nope:])
        return self.linear(out.reshape(len(x), -1), at + 'o_proj')

    def mlp(self, x, at):
        inner = silu(self.linear(x, at + 'gate_proj')) \
            * self.linear(x, at + 'up_proj')
        return self.linear(inner, at + 'down_proj')

    def moe(self, x, at):
        c = self.config
        bias = None
        if c['topk_method'] == 'noaux_tc':
            bias = self.weights.get(at + 'gate.e_score_correction_bias')
        experts, weight, margin, group_margin = gate(
            c, self.linear(x, at + 'gate'), bias)
        self.expert_margin = min(self.expert_margin, margin)
        self.group_margin = min(self.group_margin, group_margin)
        self.loads[at] = np.bincount(experts.ravel(),
                                     minlength=c['n_routed_experts'])
        y = np.zeros_like(x)
        for expert in np.unique(experts):
            rows, place = np.nonzero(experts == expert)
            y[rows] += weight[rows, place][:, None] \
                * self.mlp(x[rows], f'{at}experts.{expert}.')
        if c.get('n_shared_experts'):
            y += self.mlp(x, at + 'shared_experts.')
        return y

    def block(self, h, layer):
        at = f'model.layers.{layer}.'
        h = h + self.attention(self.norm(h, at + 'input_layernorm'),
                               at + 'self_attn.')
        self.write(f'layer{layer:02d}.attention', h)
        x = self.norm(h, at + 'post_attention_layernorm')
        feed_forward = self.moe if styles.is_moe(self.config, layer) \
            else self.mlp
        h = h + feed_forward(x, at + 'mlp.')
        self.write(f'layer{layer:02d}', h)
        return h

    def hidden(self, ids):
        """Returns the hidden states before the final norm."""
        h = self.weights.get('model.embed_tokens.weight')[ids]
        self.write('embedding', h)
        for layer in range(self.config['num_hidden_layers']):
            h = self.block(h, layer)
        return h

    def logits(self, h):
        head = 'model.embed_tokens' \
            if self.config.get('tie_word_embeddings') else 'lm_head'
        return self.linear(self.norm(h, 'model.norm'), head)

    def mtp_logits(self, h, ids):
        """Logits of t[i + 2] from hidden state i and t[i + 1].

        The hidden state is the model's output after its final norm.
        """
        layer = self.config['num_hidden_layers']
        at = f'model.layers.{layer}.'
        embedding = self.weights.get('model.embed_tokens.weight')[ids[1:]]
        h = self.norm(h[:-1], 'model.norm')
        h = self.linear(np.concatenate([self.norm(embedding, at + 'enorm'),
                                        self.norm(h, at + 'hnorm')], -1),
                        at + 'eh_proj')
        h = self.norm(self.block(h, layer), at + 'shared_head.norm')
        return self.linear(h, at + 'shared_head.head')

    def write(self, name, values):
        if self.dump:
            np.save(os.path.join(self.dump, name + '.npy'), values)


# Scoring.

def finite(x):
    return float(x) if np.isfinite(x) else None


def chosen(logprobs, ids):
    return logprobs[np.arange(len(ids)), ids].tolist()


def score(model, ids, count=0, mtp=False):
    """Returns what the file comment describes, for one array of ids."""
    if len(ids) == 0:
        return {'logprobs': []}
    model.reset()
    ids = np.asarray(ids)
    h = model.hidden(ids)
    logprobs = log_softmax(model.logits(h))
    model.write('logprobs', logprobs)
    result = {'logprobs': [None] + chosen(logprobs[:-1], ids[1:])}
    if count:
        result['top'] = [
            [[int(i), float(row[i])]
             for i in np.argsort(-row, kind='stable')[:count]]
            for row in logprobs]
    if mtp and len(ids) > 2:
        mtp_logprobs = log_softmax(model.mtp_logits(h, ids))
        result['mtp_logprobs'] = [None, None] + chosen(mtp_logprobs[:-1],
                                                       ids[2:])
    result['expert_margin'] = finite(model.expert_margin)
    result['group_margin'] = finite(model.group_margin)
    result['expert_load'] = [n.tolist() for n in model.loads.values()]
    return result


def greedy(model, ids, count):
    """The `count` likeliest tokens after ids, each computed from scratch."""
    ids = list(ids)
    for _ in range(count):
        logits = model.logits(model.hidden(np.asarray(ids))[-1:])
        ids.append(int(np.argmax(logits[0])))
    return ids[len(ids) - count:]


def main():
    parser = argparse.ArgumentParser(
        description='Scores token ids with a float64 forward pass.')
    parser.add_argument('model', help='directory of the checkpoint')
    parser.add_argument('--ids', metavar='FILE', help='default: stdin')
    parser.add_argument('--bf16-inputs', action='store_true')
    parser.add_argument('--top', type=int, default=5)
    parser.add_argument('--mtp', action='store_true')
    parser.add_argument('--greedy', type=int, metavar='N')
    parser.add_argument('--dump', metavar='DIR',
                        help='write hidden states of the last line there')
    args = parser.parse_args()

    if args.dump:
        os.makedirs(args.dump, exist_ok=True)
    model = Model(args.model, args.bf16_inputs, args.dump)
    with open(args.ids, encoding='utf-8') if args.ids else sys.stdin as f:
        for line in f:
            ids = json.loads(line)
            result = score(model, ids, args.top, args.mtp)
            if args.greedy:
                result['greedy'] = greedy(model, ids, args.greedy)
            print(json.dumps(result), flush=True)


if __name__ == '__main__':
    sys.exit(main())
