#!/usr/bin/env python3
"""The engine's speed beside llama.cpp's and ik_llama.cpp's, on one machine.

    peers.py --engine BIN --model DIR --peer TREE [--peer TREE]...
             [--gguf TYPE=FILE]... [--convert SCRIPT] [--work DIR]
             [--types bf16,int8] [--threads 1,2] [--rounds 3]
             [--cells decode,prefill,streams] [--deep 2048,16384]
             [--flags NAME=FLAGS]... [--json FILE]

Engine and peers run in turn, --rounds times; figures are medians with the
lowest and highest round, ratios are to the best peer of the cell.  A TREE is
a built source tree or its build directory; it needs llama-bench, and
llama-batched-bench for several streams.

The peers read GGUF files of the same weights: --gguf bf16=FILE int8=FILE
(Q8_0), or they are made in --work by a converter that is called as

    SCRIPT MODEL_DIR OUT.gguf bf16|q8_0 CONTEXT

with GGUF_PY pointing to the first peer's gguf-py.
"""

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile

GGUF_TYPES = {'bf16': 'bf16', 'int8': 'q8_0'}
CONTEXT = 32768
NEW = 64                                # tokens of an answer


def fail(text):
    sys.exit('peers.py: ' + text)


def run(cmd, env=None, errors=subprocess.PIPE, cwd=None):
    """Standard output of a command that must succeed."""
    r = subprocess.run(cmd, stdout=subprocess.PIPE, stderr=errors,
                       text=True, errors='replace', env=env, cwd=cwd)
    if r.returncode != 0:
        fail('%s\n%s' % (' '.join(cmd), (r.stderr or r.stdout)[-2000:]))
    return r.stdout


class Peer:
    """One built tree; `gp` is ik_llama.cpp's way to ask for a depth."""

    def __init__(self, tree, flags):
        for sub in ('build/bin', 'bin', '.'):
            self.bin = os.path.abspath(os.path.join(tree, sub))
            if os.access(os.path.join(self.bin, 'llama-bench'), os.X_OK):
                break
        else:
            fail('%s: no llama-bench in it, nor in bin or build/bin' % tree)
        self.tree = tree
        help_text = subprocess.run([self.tool('llama-bench'), '--help'],
                                   capture_output=True, text=True).stdout
        self.gp = '-gp <pp,tg>' in help_text
        self.name = os.path.basename(os.path.abspath(tree))
        self.flags = flags.get(self.name)
        if self.flags is None:
            self.flags = '-fa 1 -mla 3 -fmoe 1 -rtr 1' if self.gp else ''
        self.flags = self.flags.split()

        # The other program spells them otherwise, and has -fmoe by itself.
        self.stream_flags = ['-mla', '3', '-rtr'] if self.gp else []

    def tool(self, name):
        return os.path.join(self.bin, name)

    def bench(self, gguf, threads, *args):
        """The rows that llama-bench prints."""
        return json.loads(run([self.tool('llama-bench'), '-m', gguf, '-t',
                               str(threads), '-r', '1', '-o', 'json']
                              + self.flags + list(args)))

    def decode(self, gguf, threads, depth):
        if not self.gp:
            args = ['-p', '0', '-n', str(NEW), '-d', str(depth)]
        elif depth == 0:
            args = ['-p', '0', '-n', str(NEW)]
        else:
            args = ['-p', '0', '-n', '0', '-gp', '%d,%d' % (depth, NEW)]
        rows = self.bench(gguf, threads, *args)
        return [r['avg_ts'] for r in rows if r['n_gen'] > 0][-1]

    def prefill(self, gguf, threads, tokens):
        rows = self.bench(gguf, threads, '-p', str(tokens), '-n', '0')
        return [r['avg_ts'] for r in rows if r['n_prompt'] == tokens][-1]

    def streams(self, gguf, threads, n):
        """All streams together; S_TG is the eighth column."""
        text = run([self.tool('llama-batched-bench'), '-m', gguf, '-c',
                    str(n * 256), '-b', '2048', '-ub', '512', '-npp', '64',
                    '-ntg', str(NEW), '-npl', str(n), '-t', str(threads),
                    '-tb', str(threads)]
                   + self.stream_flags, errors=subprocess.STDOUT,
                   cwd=tempfile.gettempdir())       # it leaves a log there
        for line in text.splitlines():
            m = re.match(r'\|\s*64 \|\s*%d \|\s*%d \|' % (NEW, n), line)
            if m:
                return float(line.split('|')[8])
        fail('%s: no result for %d streams:\n%s' % (self.tree, n, text))


class Engine:
    def __init__(self, binary, model):
        self.binary, self.model, self.name = binary, model, 'llm-engine'

    def bench(self, kind, threads, *args):
        cmd = [self.binary, 'bench', '--json', '--repeat', '1', '--model',
               self.model, '--threads', str(threads)] + list(args)
        if kind != 'bf16':
            cmd += ['--weights', kind]
        return json.loads(run(cmd))['results'][-1]['tokens_per_second']

    def decode(self, kind, threads, depth):
        return self.bench(kind, threads, '--batch', '1', '--prompt-tokens',
                          '0', '--depth', str(max(depth, 1)), '--new-tokens',
                          str(NEW))

    def prefill(self, kind, threads, tokens):
        return self.bench(kind, threads, '--batch', '1', '--prompt-tokens',
                          str(tokens), '--new-tokens', '0')

    def streams(self, kind, threads, n):
        return self.bench(kind, threads, '--batch', str(n), '--prompt-tokens',
                          '0', '--depth', '64', '--new-tokens', str(NEW))


def gguf_files(args, peers):
    """{type: file} for the peers; converts what is not there."""
    files = dict(f.split('=', 1) for f in args.gguf)
    for kind in args.types:
        if kind in files:
            if not os.path.exists(files[kind]):
                fail('--gguf: %s is not there' % files[kind])
            continue
        if args.convert is None:
            fail('no GGUF file for %s: give --gguf %s=FILE or --convert '
                 'SCRIPT' % (kind, kind))
        name = os.path.basename(os.path.abspath(args.model))
        out = os.path.join(args.work, '%s-%s.gguf' % (name,
                                                      GGUF_TYPES[kind]))
        if not os.path.exists(out):
            os.makedirs(args.work, exist_ok=True)
            env = dict(os.environ)
            env.setdefault('GGUF_PY', os.path.join(peers[0].tree, 'gguf-py'))
            run([sys.executable, args.convert, args.model, out + '.new',
                 GGUF_TYPES[kind], str(CONTEXT)], env)
            os.rename(out + '.new', out)
        files[kind] = out
    return {k: os.path.abspath(f) for k, f in files.items()}


def cells(args):
    out = []
    for kind in args.types:
        for threads in args.threads:
            if 'decode' in args.cells:
                for depth in [0] + args.deep:
                    out.append((kind, threads, 'decode', depth))
            if 'prefill' in args.cells:
                for n in (512, 4096):
                    out.append((kind, threads, 'prefill', n))
            if 'streams' in args.cells:
                for n in (8, 32):
                    out.append((kind, threads, 'streams', n))
    return out


def median(x):
    x = sorted(x)
    return (x[len(x) // 2] + x[(len(x) - 1) // 2]) / 2


def numbers(text):
    return [int(x) for x in text.split(',') if x]


def words(text):
    return text.split(',')


def main():
    p = argparse.ArgumentParser(
        usage=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    p.add_argument('--engine', required=True)
    p.add_argument('--model', required=True)
    p.add_argument('--peer', action='append', required=True)
    p.add_argument('--gguf', action='append', default=[])
    p.add_argument('--convert')
    p.add_argument('--work', default='.')
    p.add_argument('--types', type=words, default=['bf16', 'int8'])
    p.add_argument('--threads', type=numbers, default=[1, 2])
    p.add_argument('--rounds', type=int, default=3)
    p.add_argument('--cells', type=words,
                   default=['decode', 'prefill', 'streams'])
    p.add_argument('--deep', type=numbers, default=[2048, 16384])
    p.add_argument('--flags', action='append', default=[])
    p.add_argument('--json')
    args = p.parse_args()

    for kind in args.types:
        if kind not in GGUF_TYPES:
            fail('--types: "%s" is not %s' % (kind, ' or '.join(GGUF_TYPES)))

    flags = dict(f.split('=', 1) for f in args.flags)
    peers = [Peer(t, flags) for t in args.peer]
    engine = Engine(args.engine, args.model)
    files = gguf_files(args, peers)
    result = []

    print('%-5s %7s  %-14s %22s  %s  %s' % (
        'type', 'threads', 'tokens/s', engine.name,
        '  '.join('%22s' % q.name for q in peers), 'ratio to the best'))

    for kind, threads, what, n in cells(args):
        got = {s.name: [] for s in [engine] + peers}
        for _ in range(args.rounds):
            got[engine.name].append(getattr(engine, what)(kind, threads, n))
            for q in peers:
                got[q.name].append(getattr(q, what)(files[kind], threads, n))
        m = {k: median(v) for k, v in got.items()}
        ratio = m[engine.name] / max(m[q.name] for q in peers)
        result.append({'type': kind, 'threads': threads, 'what': what,
                       'n': n, 'rounds': got, 'ratio': ratio})
        print('%-5s %7d  %-14s %s  %6.2f' % (
            kind, threads, '%s %d' % (what, n),
            '  '.join('%9.1f [%5.0f-%5.0f]' % (m[k], min(v), max(v))
                      for k, v in got.items()), ratio), flush=True)

    if args.json:
        with open(args.json, 'w') as f:
            json.dump(result, f, indent=1)


main()
