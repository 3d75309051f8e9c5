#!/usr/bin/perl

# The real engine behind nginx: the shipped model, or a random checkpoint (or
# MODEL=DIR).  What is computed arrives, whatever happens around it.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::Bin/lib";

use IPC::Open2;
use JSON::PP;
use Test::LLM;
use Test::More;
use Time::HiRes qw/ sleep time /;

my ($true, $false) = (JSON::PP::true(), JSON::PP::false());
my $top = Test::LLM::top();
my $t = Test::LLM->new();

# A model.

my $model = $ENV{MODEL} // "$top/engine/models/wordnet-tiny";
my $speaks = 1;

if (!-e "$model/model.safetensors") {
    my $make = "$top/tests/reference/make_checkpoint.py";
    my $out = `/usr/bin/python3 $make --style v3 $t->{dir}/model 2>&1`;
    plan skip_all => "no model: $out" if $?;
    $model = "$t->{dir}/model";
    $speaks = 0;
}

# Guessing ahead changes nothing; where the model has a layer for it.

my @guess = ('--speculate', 2, '--speculate-always');
open my $config, '<', "$model/config.json" or die "$model: $!";
@guess = () if !grep { /"num_nextn_predict_layers": *[1-9]/ } <$config>;

sub engine {
    $t->engine('real', $model, '--model-name', 'tiny',
               '--max-context', 1024, @_);
}

engine();
$t->nginx(sprintf(<<'CONF', $t->tls()), workers => 2);
    llm_engine e unix:%%%%SOCKET%%%% resume=0;
    log_format llm '$status $llm_finish_reason $llm_prompt_tokens '
                   '$llm_completion_tokens $llm_cached_tokens';
    keepalive_requests 10000;

    server {
        listen %%%%LISTEN%%%% reuseport sndbuf=16k;
        listen %%%%LISTEN:https%%%% ssl http2;
        %s
        access_log logs/llm.log llm;
        location / { llm_pass e; }
    }
CONF

# The board, one line for each that is asked for.

my ($board_out, $board_in);
my $board_pid;

sub board {
    if (!$board_pid) {
        $board_pid = open2($board_out, $board_in,
                           "$t->{build}/tests/board_tool", $t->socket_path());
    }
    print $board_in "\n";
    $board_in->flush();
    return $t->decode(scalar(<$board_out>) // '') // {};
}

sub board_close {
    return if !$board_pid;
    close $board_in;
    waitpid $board_pid, 0;
    $board_pid = 0;
}

# Each worker finds a new engine for itself.

sub back {
    my ($what) = @_;

    board_close();
    ok($t->wait_for(sub { board()->{lanes} >= 3 }, 20), "engine back, $what");
    board_close();
}

sub idle {
    my ($what) = @_;
    ok($t->wait_for(sub {
        my $b = board();
        return $b->{running} == 0 && $b->{waiting} == 0;
    }, 20), "$what: nothing runs, nothing waits");
    my $b = board();
    is($b->{ranks}[0]{blocks_free}, $b->{ranks}[0]{blocks_total},
       "$what: no block is held");
}

my $chat = '/v1/chat/completions';

sub ask {
    my ($text, %more) = @_;
    return { messages => [ { role => 'user', content => $text } ],
             temperature => 0, max_tokens => 40, %more };
}

# Runs `n` tokens, whatever the model would rather do.

sub long {
    my ($n, %more) = @_;
    return { prompt => 'a falcon is', ignore_eos => $true, max_tokens => $n,
             %more };
}

# It speaks.

my $board = board();
my $context = $board->{max_context};
is($board->{running}, 0, 'board: nothing runs');
ok($t->wait_for(sub { board()->{lanes} >= 3 }),
   'board: both workers and this test are there');

my $r = $t->request('POST', $chat, ask('What is a falcon?'));

SKIP: {
    skip 'no chat template', 4 if !$board->{has_template};

    is($r->{status}, 200, 'chat') or diag($r->{body});
    my $answer = $r->{json}{choices}[0]{message}{content};
    cmp_ok(length $answer, '>', 0, 'chat: ' . $answer =~ s{[^ -~]}{.}gr);
    my $s = $t->request('POST', $chat, ask('What is a falcon?',
                                           stream => $true));
    is($t->sse_text($s->{body}), $answer, 'chat: the same in a stream');
    my ($h) = $t->h2(uri => $chat, body => ask('What is a falcon?',
                                               stream => $true));
    is($t->sse_text($h->{text}), $answer, 'chat: the same over HTTP/2');
}

# The same seed gives the same bytes: alone, in a crowd, over any protocol.

my $seeded = long(60, temperature => 1, seed => 1234567890123,
                  logprobs => 2, stream => $true);

sub plain {
    my ($body) = @_;
    my @lp = map { $_->{choices}[0]{logprobs} } grep { ref } $t->sse($body);

    # Records may join tokens differently: text and numbers count.
    return join '|', $t->sse_text($body),
                     map { @{ $_->{token_logprobs} } } grep { $_ } @lp;
}

my $want = plain($t->request('POST', '/v1/completions', $seeded)->{body});
cmp_ok(length $want, '>', 100, 'seeded: an answer');

my @crowd = map {
    my $c = $t->connect();
    $t->send_request($c, 'POST', '/v1/completions', $_ % 4 ? long(20 + 3 * $_,
        temperature => 1, seed => $_, stream => $true) : $seeded);
    $c
} 1 .. 24;
my $h2 = $t->h2_start(uri => '/v1/completions', streams => 8, body => $seeded);
my @all = map { $t->read_response($crowd[$_ - 1], limit => 60) } 1 .. 24;
my @same = grep { $_ % 4 == 0 } 1 .. 24;
is(scalar(grep { plain($all[$_ - 1]{body}) eq $want } @same), @same,
   'seeded: the same in a crowd');
is(scalar(grep { plain($_->{text}) eq $want } $t->h2_finish($h2)), 8,
   'seeded: the same over HTTP/2');

# Stop strings that begin within a token and end in another, or as they like.

my %sampled = (temperature => 1, seed => 11);

sub stopped {
    return map {
        my $c = $t->request('POST', '/v1/completions',
                            long(60, %sampled, stop => $_))
                  ->{json}{choices}[0];
        "$c->{finish_reason}: $c->{text}"
    } @_;
}

my $sample = $t->request('POST', '/v1/completions', long(60, %sampled))
               ->{json}{choices}[0]{text};
my @stops = map { substr $sample, $_, 1 + $_ % 7 } 5, 11, 23, 47, 80;
my @stopped = stopped(@stops);
cmp_ok(scalar(grep { /^stop/ } @stopped), '>', 2, 'stop strings found');
isnt(plain($t->request('POST', '/v1/completions', { %$seeded, seed => 7 })
           ->{body}), $want, 'another seed, another answer');
idle('a crowd');

# What begins alike is computed once, for each tenant; the bytes are the same.

sub cached {
    my ($what, $want, $text, %more) = @_;
    my $r = $t->request('POST', '/v1/completions', {
        prompt => 'Of birds. ' . 'A falcon is a bird of prey; ' x 40 . 'and',
        temperature => 1, seed => 5, max_tokens => 20, ignore_eos => $true,
        %more });
    my $u = $r->{json}{usage} // {};
    my $full = int((($u->{prompt_tokens} // 0) - 1) / 64) * 64;
    my $hit = $want ? $full : 0;

    cmp_ok($full, '>=', 128, "$what: a prompt of blocks");
    is($u->{prompt_tokens_details}{cached_tokens}, $hit, "$what: cached");
    is("$u->{prompt_cache_hit_tokens} $u->{prompt_cache_miss_tokens}",
       "$hit " . ($u->{prompt_tokens} - $hit), "$what: hit and miss");
    is($r->{json}{choices}[0]{text}, $text, "$what: the same text")
        if defined $text;
    return $r->{json}{choices}[0]{text};
}

my $birds = cached('first', 0);
cached('again', 1, $birds);
cached('a tenant', 0, $birds, user => 'alice');
cached('another', 0, $birds, user => 'bob');
cached('the tenant again', 1, $birds, user => 'alice');
cached('scored', 0, undef, echo => $true, logprobs => 1);
like($t->read_file('logs/llm.log'), qr/^200 length \d+ 20 [1-9]\d*$/m,
     'cached: the variable');
idle('cached');

# A request that its client leaves ends within one step, as the board shows:
# with the slowest kernels and others running, so that a step is long beside
# what a busy machine takes to wake nginx.

sub streams {
    my ($n, $tokens, %more) = @_;
    my @c = map { $t->connect() } 1 .. $n;
    for my $c (@c) {
        $t->send_request($c, 'POST', '/v1/completions',
                         long($tokens, stream => $true, %more));
    }
    for my $c (@c) {
        my $first = $t->read_response($c, limit => 60,
                                      on_data => sub { 'stop' });
        is($first->{status}, 200, 'a stream began') if $first->{status} != 200;
    }
    return @c;
}

sub running { board()->{running} }

board_close();
$t->stop('engine');
engine('--kernels', 'generic', '--threads', 1);
back('slowly');

my @late;
for my $round (1 .. 5) {
    my @c = streams(8, $context - 100);
    ok($t->wait_for(sub { running() == 8 }, 20), "round $round: eight run")
        or last;
    my ($victim) = splice @c, 3, 1;
    my $before = board();
    close $victim->{sock};
    my $after;
    do { $after = board() } while ($after->{running} == 8
                                   && $after->{step} < $before->{step} + 500);
    push @late, $after->{step} - $before->{step};
    is($after->{running}, 7, "round $round: one ended, seven go on");
    close $_->{sock} for @c;
    $t->wait_for(sub { running() == 0 }, 20);
}
@late = sort { $a <=> $b } @late;

# One step may be under way when the connection closes and be counted, the
# next has one sequence less.

cmp_ok($late[1], '<=', 2, "an abort ends within a step (@late)");
idle('aborts');

board_close();
$t->stop('engine');
engine();
back('fast');

# And without anyone else, over HTTP/2, in the middle of a prompt, in n.

my @h = $t->h2(uri => '/v1/completions', streams => 5, abort_after => 3,
               body => long($context - 100, stream => $true));
is(scalar(grep { $_->{aborted} } @h), 5, 'HTTP/2: reset');
idle('HTTP/2 aborts');

my $c = $t->connect();
$t->send_request($c, 'POST', '/v1/completions', { n => 8, %{ long(500) },
    prompt => 'word ' x ($context / 4) });
sleep 0.05;
close $c->{sock};
idle('left in the middle of a prompt');

# One that stops reading does not hold up fifty.

sub fifty {
    my $start = time();
    my @c = map { $t->connect() } 1 .. 50;
    $t->send_request($_, 'POST', '/v1/completions',
                     long(60, stream => $true, temperature => 0)) for @c;
    my @r = map { $t->read_response($_, limit => 60) } @c;
    my %texts = map { $t->sse_text($_->{body}) => 1 } @r;
    is(scalar(grep { $_->{body} =~ /\[DONE\]\n\n$/ } @r), 50, 'fifty ended');
    is(keys %texts, 1, 'with the same text');
    return time() - $start;
}

my $alone = fifty();
my $stalled = $t->connect();
$t->send_request($stalled, 'POST', '/v1/completions',
                 long($context - 100, stream => $true, logprobs => 20,
                      temperature => 1, seed => 1));
$t->wait_for(sub { running() == 1 }, 10);
my $beside = fifty();
cmp_ok($beside, '<', 3 * $alone + 1,
       sprintf 'one that stops reading (%.2f s, %.2f s without)', $beside,
       $alone);
$r = $t->read_response($stalled, limit => 60);
is(scalar(() = $r->{body} =~ /"token_logprobs":/g), $context - 100,
   'it reads on, and has every token');
like($r->{body}, qr/\[DONE\]\n\n$/, 'to the end');
idle('a stalled reader');

# A worker that is killed takes its own streams along, and no others.

my @c = streams(12, 500);
ok($t->wait_for(sub { running() == 12 }, 20), 'twelve streams run');
my ($killed) = sort $t->workers();
kill 'KILL', $killed;
my ($cut, $whole) = (0, 0);
for my $s (@c) {
    $s->{buf} = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
        . $s->{buf};
    my $r = $t->read_response($s, limit => 60);
    $r->{error} ? $cut++ : $r->{body} =~ /\[DONE\]\n\n$/ ? $whole++ : 0;
}
is($cut + $whole, 12, "a worker killed: $cut cut, $whole whole");
cmp_ok($_, '>', 0, 'a worker killed: not all, not none') for $cut, $whole;
idle('a worker killed');
is($t->request('POST', '/v1/completions', long(3))->{status}, 200,
   'a worker killed: served again');

# The engine is killed: clean ends, then 503, then service without a reload.

@c = streams(6, $context - 100);
board_close();
$t->stop('engine', 'KILL');
my $clean = 0;
for my $s (@c) {
    $s->{buf} = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
        . $s->{buf};
    my $r = $t->read_response($s, limit => 30);
    $clean++ if !$r->{error} && $r->{body} =~ /data: \{"error":.*\n\n$/;
}
is($clean, 6, 'engine killed: each stream ends with an error event');
$t->error_ok($t->request('POST', '/v1/completions', long(3)), 503,
             'engine killed: 503');
engine('--ranks', 2, '--threads', 1);
back('with two ranks');
is(plain($t->request('POST', '/v1/completions', $seeded)->{body}), $want,
   'seeded: the same on two ranks');

# What an engine leaves on disk, the next one finds, on other ranks too.

for my $ranks (1, 2) {
    board_close();
    is($t->stop('engine'), 0, 'disk: a clean exit');
    engine('--kv-cache-dir', "$t->{dir}/kv", '--ranks', $ranks,
           '--threads', 1);
    back("with a disk, ranks $ranks");
    cached("disk, ranks $ranks", $ranks == 2, $birds);
}

# SIGTERM lets a stream finish.

($c) = streams(1, 200);
kill 'TERM', $t->pid('engine');
sleep 0.05;
$c->{buf} = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
    . $c->{buf};
$r = $t->read_response($c, limit => 30);
like($r->{body}, qr/\[DONE\]\n\n$/, 'SIGTERM: a running stream finishes');
is($t->stop('engine'), 0, 'SIGTERM: a clean exit');
engine(@guess);
back('after SIGTERM');
is(plain($t->request('POST', '/v1/completions', $seeded)->{body}), $want,
   "seeded: the same @guess");
is_deeply([ stopped(@stops) ], \@stopped, "stop strings: the same @guess");

# What the engine itself refuses.

for my $case (
    [ 'too long', 400, 'prompt', { prompt => 'word ' x (2 * $context) } ],
    [ 'an id beyond the vocabulary', 400, 'prompt', {
        prompt => [ $board->{vocab_size} ] } ],
    [ 'a bias beyond it', 400, 'logit_bias', {
        prompt => 'x', logit_bias => { $board->{vocab_size} => 1 } } ],
) {
    my ($what, $status, $param, $body) = @$case;
    $r = $t->request('POST', '/v1/completions', $body);
    $t->error_ok($r, $status, "refused: $what", param => $param);
}

# Scoring: what was generated greedily is the most probable.

$r = $t->request('POST', '/v1/completions', long(8, temperature => 0));
my $text = 'a falcon is' . $r->{json}{choices}[0]{text};
$r = $t->request('POST', '/v1/completions', {
    prompt => $text, echo => $true, logprobs => 3, max_tokens => 0 });
my $lp = $r->{json}{choices}[0]{logprobs};
is($r->{json}{choices}[0]{text}, $text, 'scoring: text');
is($lp->{token_logprobs}[0], undef, 'scoring: the first has none');
is(scalar(grep { !defined || $_ > 0 } @{ $lp->{token_logprobs} }[1 ..
   $#{ $lp->{token_logprobs} }]), 0, 'scoring: all others do');

# A thousand mutations of a request, from a fixed seed: no answer is missing,
# and the engine lives.

srand 20240229;
my @seeds = map { $t->encode($_) } (
    ask("caf\x{e9} \x{1f600}", stop => [ "\n", 'x' ], logit_bias => { 5 => 1 },
        seed => 1, top_p => 0.5, n => 2, max_tokens => 3),
    { prompt => [ 'a', [ 1, 2, 3 ] ], echo => $true, logprobs => 2,
      max_tokens => 2, presence_penalty => -1.5, user => 'u' },
    ask('x', stream => $true, stream_options => { include_usage => $true },
        logprobs => $true, top_logprobs => 5, max_tokens => 3));
my @values = ('null', 'true', '-1', '0', '1', '2.5', '1e9', '""', '"x"',
              '[]', '{}', '[1]', '["a"]', '{"1":2}', '[[5]]', '"\u00e9"');
my @bits = ('"', '{', '}', '[', ']', ',', ':', 'null', 'true', '-', '1e9',
            '99999999999', '\\', '\u0000', '\ud800', "\xff", "\0", '0', '1.5',
            '"messages"', '"prompt"', '"n":16,', '"max_tokens":0,', '""');
$c = $t->connect();
my %seen;
my $answers = 0;
for my $i (1 .. 1000) {
    my $text = $seeds[$i % 3];
    if ($i % 4) {
        my @at;
        push @at, [ $-[1], $+[1] - $-[1] ]
            while $text =~ /[:,\[]("[^"]*"|[-\d.]+|true)(?=[,\]}])/g;
        my $at = $at[rand @at];
        substr $text, $at->[0], $at->[1], $values[rand @values];
    }
    for (1 .. ($i % 4 ? rand 2 : 1 + rand 3)) {
        my $at = int rand length $text;
        my $bit = $bits[rand @bits];
        substr $text, $at, int rand 1 + ($_ ? 1 : length $bit),
               rand() < 0.5 ? $bit : chr int rand 256;
    }
    $r = $t->request('POST', $i % 3 == 1 ? '/v1/completions' : $chat, $text,
                     conn => $c, limit => 20);
    $answers++ if $r->{status} && !$r->{error};
    $seen{$r->{status}}++;
    $c = $t->connect() if ($r->{headers}{connection} // 'close') eq 'close';
}
is($answers, 1000, 'mutations: every one was answered ('
   . join(', ', map { "$_: $seen{$_}" } sort keys %seen) . ')');
is(scalar(grep { !/^(200|400|404|413)$/ } keys %seen), 0,
   'mutations: no server error');
ok($t->alive('engine'), 'mutations: the engine lives');
idle('mutations');
is(plain($t->request('POST', '/v1/completions', $seeded)->{body}), $want,
   'mutations: and gives the same answers');

# npm's openai, against this model.

SKIP: {
    my $node = "$top/tests/node_modules/.bin/node";
    skip 'no npm packages', 1 if !-x $node;
    skip 'no model that speaks', 1 if !$speaks;

    local $ENV{BASE_URL} = 'http://127.0.0.1:' . $t->port('http') . '/v1';
    local $ENV{MODEL} = 'tiny';
    my $test = "$top/tests/clients/real.test.mjs";
    my $out = `$node --test --test-reporter=tap $test 2>&1`;
    ok($? == 0, 'openai client') or diag($out);
}

board_close();

is(scalar(() = $t->read_file('logs/error.log')
              =~ /exited on signal (?!9\b)/g), 0, 'no worker died otherwise');

$t->done(allow => qr/exited on signal 9/);
done_testing();
