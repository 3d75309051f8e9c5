#!/usr/bin/python3
"""What quantised weights do to the shipped model's answers.

    quality.py ENGINE [--model DIR] [--wordnet DIR] [--show] [TYPE...]

Asks for the 50 nouns of the model's train/nouns.txt, greedily, with weights
as they are and of each TYPE (default: fp8 int8 int4), and counts the answers
that stay what they were, word for word; --show prints the others. INT8 must
keep 48 of 50, FP8 45 and INT4 40, or the exit status is 1.

With the dictionary files of Debian's wordnet-base (--wordnet, or where that
package has them) it also prints the perplexity of 400 definitions of nouns
picked at random, as answers to "What is a ...?", and the mean difference of
a token's log-probability from weights as they are.
"""

import argparse
import json
import math
import os
import random
import subprocess
import sys

MODEL = os.path.join(os.path.dirname(os.path.abspath(__file__)),
                     '../../engine/models/wordnet-tiny')
KEPT = {'bf16': 50, 'fp8': 45, 'int8': 48, 'int4': 40}
DEFINITIONS = 400

# Nouns that are asked for without an article.
NO_ARTICLE = {'bread', 'cheese', 'soup', 'coffee', 'honey', 'rain', 'winter',
              'gold', 'freedom', 'music', 'war', 'anger', 'language', 'money'}


def article(noun):
    return 'an' if noun[0] in 'aeiou' else 'a'


def engine(args, command, options, text=''):
    done = subprocess.run([args.engine, command, '--model', args.model,
                           *options], input=text, capture_output=True,
                          text=True, check=False, timeout=300)
    if done.returncode != 0:
        sys.exit(f'{command} {options}: {done.stderr.strip()}')
    return done.stdout


def answers(args, weights):
    with open(os.path.join(args.model, 'train/nouns.txt'),
              encoding='utf-8') as f:
        nouns = f.read().split()
    result = {}
    for noun in nouns:
        asked = noun if noun in NO_ARTICLE else f'{article(noun)} {noun}'
        result[noun] = engine(
            args, 'generate', ['--weights', weights, '--temperature', '0',
                               '--max-tokens', '96',
                               f'What is {asked}?']).strip()
    return result


def definitions(path):
    """(noun, first gloss) pairs of WordNet's data.noun."""
    pairs = []
    with open(os.path.join(path, 'data.noun'), encoding='utf-8') as f:
        for line in f:
            if line.startswith('  '):
                continue
            left, gloss = line.split(' | ', 1)
            noun = left.split(' ')[4]
            gloss = gloss.strip().split(';')[0].strip()
            if noun.isalpha() and noun.islower() and len(noun) >= 4 \
                    and len(gloss) >= 20 and '"' not in gloss:
                pairs.append((noun, gloss))
    random.Random(5).shuffle(pairs)
    return pairs[:DEFINITIONS]


def token_rows(args, pairs):
    """Ids of question and answer, and where the answer begins."""
    texts = [f'What is {article(n)} {n}?' for n, _ in pairs]
    texts += [f'{article(n).capitalize()} {n} is {g}.' for n, g in pairs]
    lines = engine(args, 'tokenize', [],
                   '\n'.join(map(json.dumps, texts))).split('\n')
    ids = [json.loads(line) for line in lines if line]
    with open(os.path.join(args.model, 'train/greedy.json'),
              encoding='utf-8') as f:
        case = json.load(f)['cases'][0]
    # The template's own tokens: before and after a question, at the end.
    first, before = case['prompt_ids'][:2]
    after, last = case['prompt_ids'][-1], case['output_ids'][-1]
    rows = []
    for question, answer in zip(ids[:len(pairs)], ids[len(pairs):]):
        prompt = [first, before] + question + [after]
        rows.append((prompt + answer + [last], len(prompt)))
    return rows


def logprobs(args, rows, weights):
    text = ''.join(json.dumps(ids) + '\n' for ids, _ in rows)
    lines = engine(args, 'score', ['--weights', weights], text).split('\n')
    values = [json.loads(line) for line in lines if line]
    return [v for line, (_, begin) in zip(values, rows)
            for v in line[begin:]]


def main():
    parser = argparse.ArgumentParser(description=__doc__.split('\n', 1)[0])
    parser.add_argument('engine')
    parser.add_argument('types', nargs='*', default=['fp8', 'int8', 'int4'])
    parser.add_argument('--model', default=MODEL)
    parser.add_argument('--wordnet', default='/usr/share/wordnet')
    parser.add_argument('--show', action='store_true')
    args = parser.parse_args()

    rows = None
    if os.path.exists(os.path.join(args.wordnet, 'data.noun')):
        rows = token_rows(args, definitions(args.wordnet))
        plain = logprobs(args, rows, 'auto')
        print(f'{"as it is":8} perplexity '
              f'{math.exp(-sum(plain) / len(plain)):.3f} '
              f'over {len(plain)} tokens')

    passed = True
    before = answers(args, 'auto')
    for weights in args.types:
        now = answers(args, weights)
        other = [noun for noun in before if now[noun] != before[noun]]
        kept = len(before) - len(other)
        passed &= kept >= KEPT.get(weights, 0)
        figures = ''
        if rows:
            values = logprobs(args, rows, weights)
            apart = sum(abs(a - b) for a, b in zip(values, plain))
            perplexity = math.exp(-sum(values) / len(values))
            figures = f'perplexity {perplexity:.3f}, ' \
                      f'mean |d| {apart / len(values):.4f}, '
        print(f'{weights:8} {figures}{kept} of {len(before)} answers the same',
              flush=True)
        for noun in other if args.show else []:
            print(f'    {noun}: {before[noun]}\n    {"":{len(noun)}}  '
                  f'{now[noun]}')
    print('all passed' if passed else 'FAILED')
    return 0 if passed else 1


if __name__ == '__main__':
    sys.exit(main())
