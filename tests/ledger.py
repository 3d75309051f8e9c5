#!/usr/bin/python3
"""llm-ledger report against sums made here: ledger.py build/llm-ledger"""

import csv
import fcntl
import gzip
import io
import json
import os
import random
import subprocess
import sys
import tempfile
from decimal import Decimal, getcontext

getcontext().prec = 80

PROGRAM = sys.argv[1]
KINDS = {'accounts': 'account', 'tiers': 'tier', 'models': 'model'}
M = 10 ** 6


def report(*args, data=None, rc=0):
    """Standard output and standard error."""
    p = subprocess.run([PROGRAM, 'report', *args], input=data or b'',
                       stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                       timeout=60)
    err = p.stderr.decode()
    assert p.returncode == rc, (args, p.returncode, err[-2000:])
    assert rc == 0 or p.stdout == b'', (args, p.stdout)
    return p.stdout.decode(), err


def numbers(*args, data=None):
    out, err = report('--format', 'json', *args, data=data)
    return json.loads(out, parse_float=Decimal), err


def check(name, got, want):
    assert got == want, '%s: got %r, expected %r' % (name, got, want)


def line(**fields):
    fields.setdefault('time', '2025-02-28T12:00:00+00:00')
    return json.dumps(fields).encode() + b'\n'


def split(total, n, rng):
    """n whole numbers that add up to total."""
    cuts = sorted(rng.randrange(total + 1) for _ in range(n - 1))
    return [b - a for a, b in zip([0] + cuts, cuts + [total])]


def published_day():
    """A log with the totals that DeepSeek published for a day."""
    rng = random.Random(1)
    n = 5000
    rows = zip(split(342 * 10 ** 9, n, rng), split(266 * 10 ** 9, n, rng),
               split(168 * 10 ** 9, n, rng))
    log = b''.join(line(time='2025-02-27T%02d:%02d:00Z'
                        % (i % 24, i % 60), request_id='r%d' % i,
                        account='a%d' % (i % 7), tier='paid', model='r1',
                        status=200, prompt_tokens=h + m, cached_tokens=h,
                        completion_tokens=o)
                   for i, (h, m, o) in enumerate(rows))
    args = ('--price', 'hit=0.14,miss=0.55,output=2.19',
            '--nodes', 'mean=226.75,peak=278', '--gpus-per-node', '8',
            '--gpu-hour', '2')
    r, err = numbers(*args, data=log)
    check('messages', err, '')
    for key, want in {'requests': n, 'input_tokens': 608 * 10 ** 9,
                      'hit_tokens': 342 * 10 ** 9,
                      'miss_tokens': 266 * 10 ** 9,
                      'output_tokens': 168 * 10 ** 9, 'revenue_usd': 562100,
                      'cost_usd': 87072, 'profit_usd': 475028,
                      'profit_ratio': Decimal('5.4555'),
                      'nodes_mean': Decimal('226.75'), 'nodes_peak': 278,
                      'damaged_lines': 0}.items():
        check(key, r[key], want)
    # What was published, from token counts that were not rounded.
    assert abs(r['revenue_usd'] - 562027) < 562027 * 2 / 10000
    check('percent', int(r['profit_ratio'] * 100), 545)
    check('accounts', sum(a['revenue_usd'] for a in r['accounts']), 562100)

    out, _ = report(*args, data=log)
    for text in ('608,000,000,000', '342,000,000,000', '266,000,000,000',
                 '168,000,000,000', '562,100.00', '87,072.00', '475,028.00',
                 '545.6 %', '226.75', '278.00'):
        assert text in out, (text, out)


def oracle(rows):
    """What rows of Python numbers add up to."""
    sums = {kind: {} for kind in KINDS}
    total = {}
    for row in rows:
        groups = [total] + [sums[k].setdefault(row.get(f, ''), {})
                            for k, f in KINDS.items()]
        for g in groups:
            for key, v in (
                    ('requests', 1),
                    ('failed_requests', row.get('status', 0) >= 400),
                    ('unpriced_requests', 'cost' not in row
                     and bool(row.get('prompt_tokens', 0)
                              or row.get('completion_tokens', 0))),
                    ('input_tokens', row.get('prompt_tokens', 0)),
                    ('hit_tokens', row.get('cached_tokens', 0)),
                    ('miss_tokens', row.get('prompt_tokens', 0)
                     - row.get('cached_tokens', 0)),
                    ('output_tokens', row.get('completion_tokens', 0)),
                    ('reasoning_tokens', row.get('reasoning_tokens', 0)),
                    ('cost', row.get('cost', Decimal(0)))):
                g[key] = g.get(key, 0) + v
    return total, sums


def random_rows(n, seed):
    rng = random.Random(seed)
    names = ['', 'alice', 'bob "b", the\tbuilder', 'zoë', '名前', '\x1b[31m',
             '\u009b1m', 'a' * 255]
    for _ in range(n):
        row = {}
        for f in KINDS.values():
            if rng.random() < 0.9:
                row[f] = rng.choice(names)
        row['status'] = rng.choice([200, 200, 200, 400, 429, 503])
        if rng.random() < 0.9:
            big = 2 ** rng.randrange(63)
            row['prompt_tokens'] = rng.randrange(big)
            row['cached_tokens'] = rng.randrange(row['prompt_tokens'] + 1)
            row['completion_tokens'] = rng.randrange(big)
            row['reasoning_tokens'] = \
                rng.randrange(row['completion_tokens'] + 1)
        if rng.random() < 0.8:
            row['cost'] = Decimal(rng.randrange(10 ** rng.randrange(1, 24))) \
                .scaleb(-12)
        yield row


def written(row, rng):
    """As nginx writes it: numbers bare or quoted, unknown ones empty."""
    parts = ['"time": "2025-02-28T12:00:00+00:00"']
    for key in ('status', 'prompt_tokens', 'cached_tokens',
                'completion_tokens', 'reasoning_tokens', 'cost'):
        if key in row:
            text = '{:f}'.format(Decimal(row[key]))
            parts.append('"%s":%s' % (key, rng.choice(
                [text, '"%s"' % text])))
        elif rng.random() < 0.5:
            parts.append('"%s": %s' % (key, rng.choice(
                ['""', '"-"', 'null'])))
    for key in KINDS.values():
        if key in row:
            parts.append('"%s":%s' % (key, json.dumps(
                row[key], ensure_ascii=rng.random() < 0.5)))
    parts.append('"ttft":"0.123","rank":null,"more":{"a":[1,true]}')
    rng.shuffle(parts)
    return ('{' + ','.join(parts) + '}\n').encode()


def compare(r, rows, price=None):
    total, sums = oracle(rows)

    def same(where, got, want):
        revenue = want['cost'] if price is None else (
            want['hit_tokens'] * price[0] + want['miss_tokens'] * price[1]
            + want['output_tokens'] * price[2]) / M
        check(where + ' revenue', got['revenue_usd'], revenue)
        for key in want:
            if key != 'cost':
                check(where + ' ' + key, got[key], want[key])

    same('total', r, total)
    for kind in KINDS:
        check(kind, {g['name'] for g in r[kind]}, set(sums[kind]))
        check(kind + ' once', len(r[kind]), len(sums[kind]))
        for g in r[kind]:
            same('%s %r' % (kind, g['name']), g, sums[kind][g['name']])
        order = [(-g['revenue_usd'], -g['input_tokens'] - g['output_tokens'],
                  g['name'].encode()) for g in r[kind]]
        check(kind + ' order', order, sorted(order))


def against_oracle(tmp):
    rows = list(random_rows(3000, 2))
    rng = random.Random(3)
    log = [written(row, rng) for row in rows]
    price = ('0.000001', '0.55', '999.999999')
    option = '--price=hit=%s,miss=%s,output=%s' % price

    r, err = numbers(data=b''.join(log))
    check('messages', err, '')
    compare(r, rows)
    r, err = numbers(option, data=b''.join(log))
    compare(r, rows, [Decimal(p) for p in price])
    check('no nodes', (r['cost_usd'], r['profit_usd'], r['profit_ratio'],
                       r['off_peak_share']), (None,) * 4)

    # Plain, gzip of two members, standard input: one after the other.
    plain, packed = os.path.join(tmp, 'a.log'), os.path.join(tmp, 'b.log.gz')
    with open(plain, 'wb') as f:
        f.write(b''.join(log[:1000])[:-1])
    with open(packed, 'wb') as f:
        f.write(gzip.compress(b''.join(log[1000:1500])))
        f.write(gzip.compress(b''.join(log[1500:2000])))
    r, err = numbers(plain, packed, '-', data=gzip.compress(
        b''.join(log[2000:])))
    check('messages', err, '')
    compare(r, rows)

    # CSV says the same, names included; a table has no control characters.
    out, _ = report('--format=csv', '--nodes', 'mean=1.5', data=b''.join(log))
    table = list(csv.DictReader(io.StringIO(out, newline='')))
    total, sums = oracle(rows)
    check('csv rows', len(table), 1 + sum(map(len, sums.values())))
    for row in table:
        want = total if row['kind'] == 'total' \
            else sums[row['kind'] + 's'][row['name']]
        check('csv', Decimal(row['revenue_usd']), want['cost'])
        check('csv', int(row['miss_tokens']), want['miss_tokens'])
    check('csv cost', Decimal(table[0]['cost_usd']), 576)
    check('csv profit', Decimal(table[0]['profit_usd']), total['cost'] - 576)
    out, _ = report(data=b''.join(log))
    bad = [c for c in out if c != '\n'
           and (ord(c) < 32 or 127 <= ord(c) < 160)]
    check('control characters', bad, [])


def damaged(tmp):
    good = line(prompt_tokens=5)
    bad = [
        (b'\n', 'an object is expected'),
        (b'[]\n', 'an object is expected'),
        (good[:-3] + b'\n', None),
        (good[:-1] + b'x\n', None),
        (good[:-2] + b',}\n', 'comma before the end'),
        (good[:-2] + b', "x": "\xff"}\n', 'UTF-8'),
        (good[:-2] + b', "x": "\0"}\n', 'control character'),
        (b'\0' * 100 + b'\n', 'an object is expected'),
        (b'{"prompt_tokens":1}\n', '"time" is missing'),
        (line(time=5), '"time" is of a wrong type'),
        (line(model=5), '"model" is of a wrong type'),
        (line(account=True), '"account" is of a wrong type'),
        (line(cost=[]), '"cost" is of a wrong type'),
        (line(tier='x' * 256), 'too long'),
        (line(prompt_tokens=-1), '"prompt_tokens"'),
        (line(prompt_tokens=2 ** 63), '"prompt_tokens"'),
        (line(prompt_tokens=1.5), '"prompt_tokens"'),
        (line(prompt_tokens=' 1'), '"prompt_tokens"'),
        (line(prompt_tokens='0x1'), '"prompt_tokens"'),
        (line(prompt_tokens='1e'), '"prompt_tokens"'),
        (line(prompt_tokens='1.'), '"prompt_tokens"'),
        (line(prompt_tokens='1e99999999999'), '"prompt_tokens"'),
        (line(prompt_tokens='9' * 60), '"prompt_tokens"'),
        (line(cost='0.0000000000001'), '"cost"'),
        (line(cost='1000000000001'), '"cost"'),
        (line(cost='nan'), '"cost"'),
        (line(prompt_tokens=1, cached_tokens=2), '"cached_tokens" is more'),
        (line(completion_tokens=1, reasoning_tokens=2),
         '"reasoning_tokens" is more'),
        (good[:-2] + b', "prompt_tokens": 5}\n', 'stands twice'),
        (line(x='x' * 70000), 'longer than'),
        (line(x='x' * 2000000), 'longer than'),
    ] + [(line(time=t), '"time" is no ISO 8601') for t in (
        '', '2025-02-28', '2025-02-28T12:00:00', '2025-02-29T12:00:00Z',
        '1900-02-29T12:00:00Z', '2025-13-01T12:00:00Z',
        '2025-02-28T24:00:00Z', '2025-02-28T12:00:00+0000',
        '2025-02-28T12:00:00.Z', '2025-02-28T12:00:00Zx')]

    path = os.path.join(tmp, 'damaged.log')
    with open(path, 'wb') as f:
        for text, _ in bad:
            f.write(good + text)
        f.write(good[:20])                       # still being written
    r, err = numbers(path)
    check('good lines', (r['requests'], r['input_tokens']),
          (len(bad), 5 * len(bad)))
    check('damaged lines', r['damaged_lines'], len(bad) + 1)
    said = err.splitlines()
    check('messages', len(said), len(bad) + 1)
    for i, (text, reason) in enumerate(bad):
        where = 'llm-ledger: %s:%d: ' % (path, 2 * i + 2)
        assert said[i].startswith(where), (said[i], where)
        assert said[i].endswith(', skipped'), said[i]
        assert reason is None or reason in said[i], (said[i], reason)
    assert said[-1].startswith('llm-ledger: %s:%d: '
                               % (path, 2 * len(bad) + 1)), said[-1]
    _, err = report('-', data=b'x\n')
    assert err.startswith('llm-ledger: (standard input):1: '), err


def numbers_at_their_edges():
    top = 2 ** 63 - 1
    log = line(prompt_tokens=top, cached_tokens=0, completion_tokens=top) \
        * 1000
    r, _ = numbers('--price', 'hit=0,miss=1000000000,output=0.000001',
                   data=log)
    check('sum', r['input_tokens'], 1000 * top)
    check('revenue', r['revenue_usd'],
          Decimal(1000 * top) * 1000 + Decimal(1000 * top).scaleb(-12))
    for text, want in (('12e2', '1200'), ('0.5E-11', '5E-12'),
                       ('1.500', '1.5'), ('0', '0'), ('1000000000000',
                                                      '1000000000000')):
        r, _ = numbers(data=line(cost=text))
        check(text, r['revenue_usd'], Decimal(want))
    # More than 128 bits hold is an error, not a wrong sum.
    _, err = report('--price', 'hit=1,miss=1000000000,output=1',
                    data=line(prompt_tokens=top) * 20000, rc=1)
    assert 'too large' in err, err
    # Half a cent is rounded away from zero, in a loss as well.
    out, _ = report('--nodes', 'mean=0', data=line(cost='1234.005'))
    assert '1,234.01' in out, out
    out, _ = report('--nodes', 'mean=1', '--gpus-per-node', '1',
                    '--gpu-hour', '0.5', data=line(cost='10.995'))
    assert ' -1.01' in out, out                  # 10.995 - 12
    r, _ = numbers(data=b'')
    check('nothing', (r['requests'], r['from'], r['revenue_usd'],
                      r['accounts']), (0, None, 0, []))


def off_peak():
    log = b''.join(line(time=t, prompt_tokens=n) for t, n in (
        ('2025-02-28T16:29:59Z', 1), ('2025-02-28T16:30:00Z', 10),
        ('2025-03-01T00:29:59.999Z', 100), ('2025-03-01T00:30:00Z', 1000),
        ('2025-03-01T00:30:00+08:00', 10000),    # 16:30 UTC the day before
        ('2024-02-29T19:29:59-05:00', 100000)))  # 00:29:59 UTC, 1 March
    r, _ = numbers('--off-peak', '16:30-00:30', data=log)
    check('across midnight', r['off_peak_share'],
          Decimal(110110 * 10000 // 111111) / 10000)
    r, _ = numbers('--off-peak', '00:30-16:30', data=log)
    check('the others', r['off_peak_share'],
          Decimal(1001 * 10000 // 111111) / 10000)
    check('from, to', (r['from'], r['to']),
          ('2024-03-01T00:29:59Z', '2025-03-01T00:30:00Z'))


def refused(tmp):
    for args, reason in (
            (['--price', 'hit=1,miss=2'], 'hit, miss and output'),
            (['--price', 'hit=1,miss=2,output=3,hit=1'], 'hit stands twice'),
            (['--price', 'hit=1,miss=2,out=3'], '"out=3" is unknown'),
            (['--price', 'hit=1,miss=2,output'], '"output" is unknown'),
            (['--price', 'hit=1,miss=,output=3'], 'miss is no number'),
            (['--price', 'hit=1,miss=-2,output=3'], 'miss is no number'),
            (['--price', 'hit=0.0000001,miss=2,output=3'],
             'hit is no number'),
            (['--price', 'hit=1,miss=2,output=3,'], '"" is unknown'),
            (['--nodes', 'peak=3'], 'mean is expected'),
            (['--nodes', 'mean=3,peak=2'], 'the peak is below'),
            (['--gpus-per-node', '0'], '--gpus-per-node "0"'),
            (['--gpus-per-node', '1.5'], '--gpus-per-node "1.5"'),
            (['--gpu-hour', 'x'], '--gpu-hour "x"'),
            (['--off-peak', '16:30'], '--off-peak "16:30"'),
            (['--off-peak', '24:00-01:00'], '--off-peak "24:00-01:00"'),
            (['--off-peak', '01:00-01:00'], '--off-peak "01:00-01:00"'),
            (['--format', 'xml'], '--format "xml"'),
            (['--what'], 'unrecognized option'),
            (['--price'], 'requires an argument')):
        _, err = report(*args, rc=2)
        assert reason in err, (args, err)

    # A file that cannot be read to its end gives no report.
    packed = gzip.compress(line(prompt_tokens=5) * 5000)
    cut, broken = os.path.join(tmp, 'cut.gz'), os.path.join(tmp, 'broken.gz')
    with open(cut, 'wb') as f:
        f.write(packed[:-20])
    with open(broken, 'wb') as f:
        f.write(packed[:-8] + bytes([packed[-8] ^ 1]) + packed[-7:])
    for path in (cut, broken, tmp, os.path.join(tmp, 'none')):
        _, err = report(path, rc=1)
        assert path in err.splitlines()[-1], err

    for args, rc, text in (([], 2, 'Usage'), (['--help'], 0, 'report'),
                           (['report', '--help'], 0, '--gpu-hour'),
                           (['nothing'], 2, 'unknown command "nothing"')):
        p = subprocess.run([PROGRAM, *args], stdout=subprocess.PIPE,
                           stderr=subprocess.STDOUT, timeout=60)
        check(args, p.returncode, rc)
        assert text in p.stdout.decode(), (args, p.stdout)
    with open('/dev/full', 'wb') as full:
        p = subprocess.run([PROGRAM, 'report'], stdin=subprocess.DEVNULL,
                           stdout=full, stderr=subprocess.PIPE, timeout=60)
    check('full disk', (p.returncode, b'cannot be written' in p.stderr),
          (1, True))


def command(*args, rc=0):
    p = subprocess.run([PROGRAM, *args], stdin=subprocess.DEVNULL,
                       stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                       timeout=60)
    err = p.stderr.decode()
    check(args, (p.returncode, err), (rc, err))
    return p.stdout.decode(), err


def balances(tmp):
    path = os.path.join(tmp, 'state')
    state = ('--state', path)

    def balance():
        out, err = command('balance', *state)
        return dict(l.rsplit(' ', 1) for l in out.splitlines()), err

    _, err = command('credit', *state, 'alice', '1', rc=1)
    assert 'No such file' in err and path in err, err
    open(path, 'w').close()
    check('nothing', balance(), ({}, ''))

    # Exact sums, names of any bytes, no credit twice with one id.
    for args, out in ((('alice', '5'), 'alice 5'),
                      (('alice', '0.1'), 'alice 5.1'),
                      (('alice', '0.2'), 'alice 5.3'),
                      (('--', 'alice', '-5.300000001'),
                       'alice -0.000000001'),
                      (('b ob \x1b', '0'), 'b ob \x1b 0'),
                      (('zoë%', '1000000000'), 'zoë% 1000000000')):
        check(args, command('credit', *state, *args)[0], out + '\n')
    command('credit', *state, '--id', 'pay-1', 'alice', '1')
    _, err = command('credit', *state, '--id', 'pay-1', 'alice', '1', rc=1)
    assert '"pay-1" is there already' in err, err
    want = {'alice': '0.999999999', 'b ob ?': '0', 'zoë%': '1000000000'}
    check('balances', balance(), (want, ''))
    check('one', command('balance', *state, 'alice')[0],
          'alice 0.999999999\n')
    racing = [subprocess.Popen([PROGRAM, 'credit', *state, '--id', 'pay-2',
                                'alice', '1'], stdout=subprocess.DEVNULL,
                               stderr=subprocess.DEVNULL) for _ in range(8)]
    check('one of many', sorted(p.wait(60) for p in racing), [0] + [1] * 7)
    want['alice'] = '1.999999999'

    # A record that was cut off, and one that is glued to it.
    with open(path, 'rb') as f:
        whole = f.read()
    lines = whole.splitlines(True)
    with open(path, 'ab') as f:
        f.write(lines[0][:-3])
    got, err = balance()
    check('cut off', got, want)
    assert '0 damaged parts, 0 duplicates, %d bytes' \
        % (len(lines[0]) - 3) in err, err
    command('credit', *state, 'alice', '1')
    want['alice'] = '2.999999999'
    got, err = balance()
    check('glued', got, want)
    assert '%s: byte %d: ' % (path, len(whole)) in err, err
    assert '1 damaged parts, 0 duplicates, 0 bytes' in err, err

    # Made short: the same balances; not while another one has it open.
    out, _ = command('compact', *state)
    check('compact', out, '9 records became 3\n')
    check('compacted', balance(), (want, ''))
    with open(path, 'rb') as f:
        check('lines', f.read().count(b'\n'), 3)
    with open(path + '.old', 'rb') as f:
        check('old', f.read(len(whole)), whole)
    check('no rests', sorted(n for n in os.listdir(tmp)
                             if n.startswith('state')),
          ['state', 'state.old'])
    with open(path) as f:
        fcntl.flock(f, fcntl.LOCK_SH)
        _, err = command('compact', *state, rc=1)
        assert 'in use' in err, err
        command('credit', *state, 'alice', '0')

    for args, reason in (
            (['credit', 'alice', '1'], '--state FILE is expected'),
            (['credit', *state, 'alice'], 'a name and an amount'),
            (['credit', *state, 'alice', 'x'], '"x" is no number'),
            (['credit', *state, 'alice', '0.0000000001'], 'is no number'),
            (['credit', *state, 'alice', '1000000001'], 'is no number'),
            (['credit', *state, '', '1'], 'the name must have'),
            (['credit', *state, 'x' * 257, '1'], 'the name must have'),
            (['credit', *state, '--id', 'a b', 'alice', '1'],
             'the name must have'),
            (['balance', *state, '--id', 'x'], 'See llm-ledger balance'),
            (['compact', *state, 'x'], '"x" is not expected')):
        _, err = command(*args, rc=2)
        assert reason in err, (args, err)
    check('untouched', balance(), (want, ''))
    for name in ('credit', 'balance', 'compact'):
        assert '--state FILE' in command(name, '--help')[0]
    _, err = command('balance', '--state', tmp, rc=1)
    assert 'no regular file' in err, err


def main():
    with tempfile.TemporaryDirectory() as tmp:
        for name, test in (
                ('the published day', published_day),
                ('sums, files, gzip', lambda: against_oracle(tmp)),
                ('damaged lines', lambda: damaged(tmp)),
                ('numbers at their edges', numbers_at_their_edges),
                ('off-peak', off_peak),
                ('balances', lambda: balances(tmp)),
                ('refused', lambda: refused(tmp))):
            test()
            print('ok: ' + name)


main()
