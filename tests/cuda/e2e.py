#!/usr/bin/python3
"""The figures of e2e.sh: streams through nginx, by sse_load.

    e2e.py PORT TOKENS PROMPT MODEL SSE_LOAD STREAMS COPY

Decoding: STREAMS at once, a prompt of 64 ids each, TOKENS new tokens. Of one
stream, also the bytes that a token has to read (weights of the experts that it
takes, all other matrices but the embedding, and its tokens' cache) a second,
and their share of COPY, in GB/s. Prompts: the time to the first of one token
behind PROMPT ids, alone, and of eight at once.
"""

import json
import os
import random
import subprocess
import sys

port, tokens, prompt, model, load, streams, copy = sys.argv[1:]
tokens, prompt, copy = int(tokens), int(prompt), float(copy)
config = json.load(open(os.path.join(model, 'config.json')))
seed = random.Random(1)
rows = []


def body(n, new):
    ids = [seed.randrange(100, config['vocab_size'] - 300) for _ in range(n)]
    return json.dumps({'model': 'm', 'prompt': ids, 'max_tokens': new,
                       'stream': True, 'ignore_eos': True, 'temperature': 0})


def run(n, text, requests=None):
    out = subprocess.run(
        [load, '-p', port, '-c', str(n), '-n', str(requests or n),
         '-u', '/v1/completions', '-b', text],
        check=True, capture_output=True, text=True, timeout=120).stdout
    result = json.loads(out)
    if result['failed']:
        sys.exit(f'{result["failed"]} of {requests or n} requests failed')
    return result


def token_bytes():
    """Of the weights that one token reads, in BF16."""
    c = config
    heads = c['num_attention_heads']
    hidden, lora = c['hidden_size'], c['kv_lora_rank']
    nope, rope, v = (c['qk_nope_head_dim'], c['qk_rope_head_dim'],
                     c['v_head_dim'])
    q = c['q_lora_rank']
    attention = hidden * (lora + rope) + heads * (nope + v) * lora \
        + heads * v * hidden
    attention += heads * (nope + rope) * (q or hidden) + hidden * (q or 0)
    dense = c['first_k_dense_replace']
    moe = c['num_hidden_layers'] - dense
    expert = 3 * hidden * c['moe_intermediate_size']
    n = c['num_hidden_layers'] * attention \
        + dense * 3 * hidden * c['intermediate_size'] \
        + moe * ((c['num_experts_per_tok'] + c['n_shared_experts']) * expert
                 + 2 * c['n_routed_experts'] * hidden) \
        + c['vocab_size'] * hidden
    return 2 * n


run(1, body(64, 8))
run(8, body(64, 8))

print('| streams | tokens/s | a step, ms | weights, GB/s | of a copy |')
print('|---|---|---|---|---|')

for n in map(int, streams.split()):
    text = body(64, tokens)
    run(n, text)                       # steps of this size are recorded
    r = run(n, text)
    rate = n * tokens / r['seconds']
    step = n / rate
    line = f'| {n} | {rate:.0f} | {step * 1e3:.2f} |'
    if n == 1:
        gbs = token_bytes() / step * 1e-9
        line += f' {gbs:.0f} | ' + (f'{gbs / copy * 100:.0f} % |' if copy
                                    else '|')
    else:
        line += ' | |'
    rows.append(line)
    print(line)

run(1, body(prompt, 1))
alone = min(run(1, body(prompt, 1))['seconds'] for _ in range(3))
print(f'\nprompt of {prompt}: {alone * 1e3:.1f} ms, {prompt / alone:.0f} '
      f'tokens/s; a token reads {token_bytes() * 1e-9:.2f} GB of weights')
