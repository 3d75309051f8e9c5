#!/usr/bin/python3
"""Writes random checkpoints of the DeepSeek-V2/V3 family.

The directory has Hugging Face's layout: config.json, one model.safetensors
or several shards with their index, tokenizer.json, tokenizer_config.json
and generation_config.json. The same style, seed and dimensions give the
same weights, whatever the number of shards.

    make_checkpoint.py --style v3 --shards 2 --seed 1 OUT
    make_checkpoint.py --style v2lite --set num_hidden_layers=26 OUT
    make_checkpoint.py --break offsets-overlap OUT    one defect
    make_checkpoint.py --break all OUT                OUT/KIND for each
    make_checkpoint.py --break list | --style list

Weights are normal with a deviation of gain / sqrt(fan in), norms are near
one, so activations neither vanish nor explode and logits have a deviation
of about two.
"""

import argparse
import json
import multiprocessing
import os
import shutil
import sys
import zlib

import one_thread  # noqa: F401 (before numpy)
import numpy as np

import numerics
import styles
import tokenizer

BYTES = {'F32': 4, 'BF16': 2, 'F8_E4M3': 1}

# The deviation of the router's bias: with a larger one a few experts get most
# of the rows (--skew).
SKEW = 0.05

# What a tensor's deviation is multiplied with: sharper queries or a larger
# head only magnify the rounding errors of both sides of a comparison.
GAINS = {'o_proj': 1.5, 'lm_head': 2.0, 'head': 2.0}


# A field that is not written: what layers add is multiplied with it, so that
# tokens follow from the one before them the more, the smaller it is; and the
# MTP layer knows as much.
DRAFTS = '_drafts'


def rng_of(seed, name):
    return np.random.default_rng([seed, zlib.crc32(name.encode())])


def published_name(config, name):
    """The MTP layer's embedding and head are copies of the model's own."""
    if int(name.split('.')[2] if name.startswith('model.layers.') else -1) \
            >= config['num_hidden_layers']:
        if name.endswith('.embed_tokens.weight'):
            return 'model.embed_tokens.weight'
        if name.endswith('.shared_head.head.weight'):
            return 'model.embed_tokens.weight' \
                if config['tie_word_embeddings'] else 'lm_head.weight'
    return name


def drafting_weight(name, shape):
    """Values that let the MTP layer pass a token's embedding on to the head
    as the model itself does, or None."""
    if name.endswith('.enorm.weight'):
        return np.ones(shape, np.float32)
    if name.endswith('.eh_proj.weight'):
        return np.eye(*shape, dtype=np.float32)
    return None


def random_weight(config, name, shape, seed):
    """float32 values of one tensor, before it is stored."""
    drafts = config.get(DRAFTS)
    if drafts is not None:
        values = drafting_weight(name, shape)
        if values is not None:
            return values
        if name.endswith('.shared_head.norm.weight'):
            name = 'model.norm.weight'
    name = published_name(config, name)
    rng = rng_of(seed, name)
    values = rng.standard_normal(shape, np.float32)
    if name.endswith('e_score_correction_bias'):
        return values * np.float32(SKEW)
    if len(shape) == 1:
        return np.float32(1.0) + values * np.float32(0.1)
    if name.endswith('embed_tokens.weight'):
        return values
    gain = GAINS.get(name.split('.')[-2], 1.0) / np.sqrt(shape[1])
    if drafts is not None and name.split('.')[-2] in ('o_proj', 'down_proj'):
        gain *= drafts
    return values * np.float32(gain)


def vary_blocks(weight, name, seed):
    """Gives each 128 x 128 block a size of its own: a scale that is read
    from the wrong block must show."""
    shape = tuple(-(-n // numerics.BLOCK) for n in weight.shape)
    factor = np.exp(rng_of(seed, name + '/blocks').uniform(-0.7, 0.7, shape))
    return weight * numerics.spread_blocks(factor, weight.shape)


def is_quantised(config, name, shape):
    return 'quantization_config' in config and len(shape) == 2 \
        and ('.self_attn.' in name or '.mlp.' in name) \
        and not name.endswith('.mlp.gate.weight')


def stored_tensors(config, dtype):
    """Returns [(name, stored dtype, shape)], FP8 scales included."""
    plan = []
    for name, shape in styles.model_tensors(config):
        if is_quantised(config, name, shape):
            blocks = tuple(-(-n // numerics.BLOCK) for n in shape)
            plan.append((name, 'F8_E4M3', shape))
            plan.append((name + '_scale_inv', 'F32', blocks))
        elif name.endswith('e_score_correction_bias'):
            plan.append((name, 'F32', shape))
        elif dtype == 'MIXED':
            plan.append((name, ('BF16', 'F32')[zlib.crc32(name.encode()) % 2],
                         shape))
        else:
            plan.append((name, dtype, shape))
    return plan


def tensor_bytes(config, name, dtype, shape, seed):
    weight_name = name.removesuffix('_scale_inv')
    if dtype == 'F8_E4M3' or weight_name != name:
        if weight_name != name:
            shape = dict(styles.model_tensors(config))[weight_name]
        weight = random_weight(config, weight_name, shape, seed)
        codes, scale = numerics.fp8_quantise(
            vary_blocks(weight, weight_name, seed))
        return (codes if weight_name == name else scale).tobytes()
    weight = random_weight(config, name, shape, seed)
    if dtype == 'BF16':
        return numerics.bf16_encode(weight).tobytes()
    return weight.astype('<f4').tobytes()


def size_of(dtype, shape):
    return BYTES[dtype] * int(np.prod(shape, dtype=np.int64))


def split_shards(plan, shards):
    """Cuts the plan into parts of about equal bytes, none of them empty."""
    total = sum(size_of(d, s) for _, d, s in plan)
    parts, part, done = [], [], 0
    for i, (name, dtype, shape) in enumerate(plan):
        part.append((name, dtype, shape))
        done += size_of(dtype, shape)
        left = shards - len(parts) - 1
        if left and (done * shards >= total * (len(parts) + 1)
                     or len(plan) - i - 1 == left):
            parts.append(part)
            part = []
    return parts + [part]


def write_shard(path, part, order, config, seed, quick=False):
    # Sorted by element size, as the usual writer does, every tensor is
    # aligned to its type; by name, most are not.
    part = sorted(part, key=lambda t: t[0] if order == 'name'
                  else (-BYTES[t[1]], t[0]))
    header, offset = {'__metadata__': {'format': 'pt'}}, 0
    for name, dtype, shape in part:
        end = offset + size_of(dtype, shape)
        header[name] = {'dtype': dtype, 'shape': list(shape),
                        'data_offsets': [offset, end]}
        offset = end
    text = json.dumps(header, separators=(',', ':')).encode()
    text += b' ' * (-len(text) % 8)
    with open(path, 'wb') as f:
        f.write(len(text).to_bytes(8, 'little') + text)
        pools = {}
        for name, dtype, shape in part:
            if quick:
                write_quick(f, pools, config, name, dtype, shape, seed)
            else:
                f.write(tensor_bytes(config, name, dtype, shape, seed))


# With --quick a large matrix is so many numbers, over and over.
POOL = 1 << 23


def write_quick(f, pools, config, name, dtype, shape, seed):
    """One tensor, large matrices out of `pools`, by deviation."""
    size = size_of(dtype, shape)
    if dtype != 'BF16' or len(shape) != 2 or size < 1 << 20:
        f.write(tensor_bytes(config, name, dtype, shape, seed))
        return
    gain = 1.0 if name.endswith('embed_tokens.weight') else \
        GAINS.get(name.split('.')[-2], 1.0) / np.sqrt(shape[1])
    if gain not in pools:
        values = rng_of(seed, 'pool').standard_normal(POOL, np.float32)
        pools[gain] = numerics.bf16_encode(values * np.float32(gain)).tobytes()
    pool = memoryview(pools[gain])
    at = zlib.crc32(name.encode()) % POOL * 2
    while size > 0:
        piece = pool[at:at + size]
        f.write(piece)
        size -= len(piece)
        at = 0


def write_json(path, value):
    with open(path, 'w', encoding='utf-8') as f:
        json.dump(value, f, indent=2, ensure_ascii=False)
        f.write('\n')


def write_tokenizer(out, config, seed, copied):
    if copied:
        for name in ('tokenizer.json', 'tokenizer_config.json'):
            shutil.copy(os.path.join(copied, name), out)
        return
    tokens, token_config = tokenizer.build(config['vocab_size'], seed)
    write_json(os.path.join(out, 'tokenizer.json'), tokens)
    write_json(os.path.join(out, 'tokenizer_config.json'), token_config)


def write_checkpoint(out, config, seed=1, shards=2, dtype='bf16',
                     order='dtype', copied_tokenizer=None, drafts=None,
                     backwards=False, quick=False):
    """Writes the directory `out`; older shards in it are removed."""
    os.makedirs(out, exist_ok=True)
    for name in os.listdir(out):
        if '.safetensors' in name:
            os.unlink(os.path.join(out, name))
    config = dict(config)
    config['torch_dtype'] = 'float32' if dtype == 'f32' else 'bfloat16'
    plan = stored_tensors(config, dtype.upper())
    values = {**config, DRAFTS: drafts}
    parts = split_shards(plan, shards)
    names = ['model.safetensors'] if len(parts) == 1 else \
        [f'model-{i + 1:05d}-of-{len(parts):05d}.safetensors'
         for i in range(len(parts))]
    if backwards:
        names.reverse()
    weight_map = {}
    children = []
    for file, part in zip(names, parts):
        args = (os.path.join(out, file), part, order, values, seed, quick)
        if quick:
            children.append(multiprocessing.Process(target=write_shard,
                                                    args=args))
            children[-1].start()
        else:
            write_shard(*args)
        weight_map.update((name, file) for name, _, _ in part)
    for child in children:
        child.join()
        if child.exitcode != 0:
            raise SystemExit(f'{out}: a shard was not written')
    if len(parts) > 1:
        total = sum(size_of(d, s) for _, d, s in plan)
        write_json(os.path.join(out, 'model.safetensors.index.json'),
                   {'metadata': {'total_size': total},
                    'weight_map': dict(sorted(weight_map.items()))})
    write_json(os.path.join(out, 'config.json'), config)
    write_json(os.path.join(out, 'generation_config.json'),
               {'_from_model_config': True,
                'bos_token_id': config['bos_token_id'],
                'eos_token_id': config['eos_token_id'],
                'do_sample': True, 'temperature': 0.6, 'top_p': 0.95,
                'transformers_version': '4.39.3'})
    write_tokenizer(out, config, seed, copied_tokenizer)


def apply_settings(config, settings):
    for setting in settings:
        name, found, value = setting.partition('=')
        if not found:
            raise SystemExit(f'--set {setting}: NAME=VALUE is needed')
        config[name] = json.loads(value)
        if name == 'num_attention_heads':
            config['num_key_value_heads'] = config[name]
    return config


def main():
    global SKEW
    parser = argparse.ArgumentParser(
        description='Writes random checkpoints of the DeepSeek-V3 family.')
    parser.add_argument('out', nargs='?', help='directory to write')
    parser.add_argument('--style', default='v3', help='see --style list')
    parser.add_argument('--seed', type=int, default=1)
    parser.add_argument('--shards', type=int, default=2)
    parser.add_argument('--dtype', choices=('bf16', 'f32', 'mixed'),
                        default='bf16')
    parser.add_argument('--order', choices=('dtype', 'name'),
                        default='dtype', help='order of a shard\'s tensors;'
                        ' by name most are not aligned to their type')
    parser.add_argument('--vocab', type=int, help='rows of the vocabulary')
    parser.add_argument('--set', action='append', default=[],
                        metavar='NAME=JSON', help='any field of config.json')
    parser.add_argument('--drafts', type=float, metavar='GAIN',
                        help='an MTP layer whose drafts are right, all of '
                        'them with 0, fewer with more; above 1 hardly any')
    parser.add_argument('--tokenizer', metavar='DIR',
                        help='copy the tokenizer of DIR')
    parser.add_argument('--quick', action='store_true',
                        help='for sizes that matter and values that do not: '
                        'large matrices repeat their numbers, each shard has '
                        'a process')
    parser.add_argument('--break', dest='kind', metavar='KIND',
                        help='write a defective checkpoint; list, all')
    parser.add_argument('--skew', type=float, default=SKEW, metavar='X',
                        help='deviation of e_score_correction_bias: how '
                        'unevenly experts are used')
    args = parser.parse_args()
    SKEW = args.skew

    if args.style == 'list':
        for name, (_, text) in styles.STYLES.items():
            print(f'{name:10} {styles.parameters(styles.style(name)):12,}'
                  f'  {text}')
        return
    if args.kind == 'list':
        import defects
        defects.print_list()
        return
    if args.out is None or args.style not in styles.STYLES:
        parser.error('OUT and a known --style are needed')
    if args.kind:
        import defects
        if args.kind != 'all' and args.kind not in defects.DEFECTS:
            parser.error(f'unknown defect {args.kind}: see --break list')
        defects.write(args.out, args.kind)
        return
    config = apply_settings(styles.style(args.style), args.set)
    if args.vocab:
        config['vocab_size'] = args.vocab
    write_checkpoint(args.out, config, args.seed, max(args.shards, 1),
                     args.dtype, args.order, args.tokenizer, args.drafts,
                     quick=args.quick)


if __name__ == '__main__':
    sys.exit(main())
