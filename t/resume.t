#!/usr/bin/perl

# Requests outlive their engine: it dies, hangs, lies or is restarted, and what
# the client gets is what it would have got.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::Bin/lib";

use JSON::PP;
use Test::LLM;
use Test::More;
use Time::HiRes qw/ sleep time /;

my ($true, $false) = (JSON::PP::true(), JSON::PP::false());
my $t = Test::LLM->new();
my $json = JSON::PP->new->canonical;

my $conf = <<'CONF';
    llm_engine e unix:%%SOCKET%%;
    llm_engine zero unix:%%SOCKET%% resume=0;
    llm_engine short unix:%%SOCKET%% resume=1s;
    llm_prefix_zone zone=prefix:1m block=16;
    log_format llm '$uri $status $llm_finish_reason $llm_prompt_tokens '
                   '$llm_completion_tokens $llm_cached_tokens $llm_ttft '
                   '$llm_queue_time';
    access_log logs/llm.log llm;

    server {
        listen %%LISTEN%% sndbuf=16k;
        client_body_buffer_size 1k;
        llm_keepalive 300ms;
        location / { llm_pass e; llm_route prefix=prefix; }
        location /zero/ { llm_pass zero; }
        location /short/ { llm_pass short; }
        location = /metrics { llm_metrics; }
    }
CONF

$t->nginx($conf);

my $chat = '/v1/chat/completions';
my $plain = '/v1/completions';

sub script {
    my ($script, %more) = @_;
    return { messages => [ { role => 'user', content => 'script: '
                             . "prompt_tokens=9 $script" } ],
             stream => $true, stream_options => { include_usage => $true },
             %more };
}

sub whole {
    my ($body) = @_;
    return { %$body, stream => $false, stream_options => undef };
}

# What a client has got, however it was cut.

sub got {
    my ($r) = @_;
    my (@c, $usage);

    for my $e ($r->{json} ? $r->{json} : grep { ref } $t->sse($r->{body})) {
        $usage = $e->{usage} // $usage;
        $c[0]{error} = 1 if $e->{error};
        for my $c (@{ $e->{choices} // [] }) {
            my $i = $c[$c->{index}] //= { text => '', thought => '', lp => '' };
            my $m = $c->{delta} // $c->{message} // { content => $c->{text} };
            $i->{roles} .= $m->{role} // '';
            $i->{text} .= $m->{content} // '';
            $i->{thought} .= $m->{reasoning_content} // '';
            $i->{finish} = $c->{finish_reason} // $i->{finish};
            my $l = $c->{logprobs} or next;
            for my $k (grep { ref $l->{$_} eq 'ARRAY' } sort keys %$l) {
                next if $k eq 'text_offset';
                $i->{lp} .= join '', map { "$k " . $json->allow_nonref->encode($_)
                                           . "\n" } @{ $l->{$k} };
            }
        }
    }

    # Records may be cut elsewhere: lists by kind, not by record.

    $_->{lp} = join "\n", sort { (split / /, $a)[0] cmp (split / /, $b)[0] }
               split /\n/, $_->{lp} // '' for @c;
    return $json->encode([ \@c, $usage ]);
}

my @args = ('--delay', 5);
my @kind = ('scripted');

sub engine { $t->engine(@kind, @args, @_) }

sub again {
    $t->stop('engine', 'KILL');
    engine(@_);
}

sub back {
    my ($what) = @_;
    ok($t->wait_for(sub {
        !grep { $t->request('GET', "$_/v1/models")->{status} != 200 }
              '', '/zero', '/short' }, 15), "$what: engine there")
}

# Runs a request and does something to the engine when `at` bytes have come.

sub stream {
    my ($uri, $body, $at, $do, %opt) = @_;
    my $c = $t->connect();
    my $done = 0;

    $t->send_request($c, 'POST', $uri, $body, Connection => 'close');
    return $t->read_response($c, limit => 40, %opt, on_data => sub {
        my ($data, $r) = @_;
        while ($done < @$at && length $r->{body} > $at->[$done]) {
            $done++;
            $do->();
        }
        return '';
    });
}

sub answer {
    my ($uri, $body, $after, $do) = @_;
    my $c = $t->connect();

    $t->send_request($c, 'POST', $uri, $body, Connection => 'close');
    for (ref $after ? @$after : $after) {
        sleep $_;
        $do->();
    }
    return $t->read_response($c, limit => 40);
}

sub finished {
    my ($r, $want, $what) = @_;
    is(got($r), $want, $what);
    is(scalar(() = $r->{body} =~ /^data: \[DONE\]$/mg), 1, "$what: one end")
        if !$r->{json};
    ok(!$r->{error}, "$what: a clean end");
}

engine();
back('at first');

# Killed once, twice; streamed and not.

my $body = script('reasoning=5 tokens=60 delay=5 cached=3',
                  logprobs => $true, top_logprobs => 2);
my $want = got($t->request('POST', $chat, $body));
like($want, qr/w60/, 'uninterrupted');
my $n = $t->submits();
my $r = stream($chat, $body, [ 9000 ], \&again);
finished($r, $want, 'killed');
is(scalar(() = $r->{body} =~ /"role"/g), 1, 'killed: one role');

my @s = ($t->submits())[$n .. $n + 1];
is($s[1]{$_}, $s[0]{$_}, "killed: the same $_")
    for qw/ max_tokens endpoint fingerprint temperature /;
like($s[1]{flags}, qr/seed/, 'killed: with a seed');
is($s[1]{queue_max}, 4294967295, 'killed: whatever the queue');
cmp_ok($s[1]{resume_bytes}, '>', 10, 'killed: bytes');
cmp_ok($s[1]{resume_bytes}, '<', 200, 'killed: not all of them');

finished(stream($chat, $body, [ 3000, 6000, 15000 ], \&again), $want,
         'killed three times');
my $sum = got($t->request('POST', $chat, whole($body)));
finished(answer($chat, whole($body), .15, \&again), $sum,
         'killed, not streamed');
finished(answer($chat, whole($body), [ .15, .15 ], \&again), $sum,
         'killed twice, not streamed');
my $log = $t->read_file('logs/llm.log');
is(scalar(() = $log =~ m{^/v1/chat/completions 200 stop 9 65 3 0\.\d+ 0\.0}mg),
   scalar(() = $log =~ m{^/v1/chat}mg), 'variables') or diag($log);
like($t->request('GET', '/metrics')->{body},
     qr/^llm_resumed_requests_total\{model="scripted"\} 4$/m, 'counted once');

# Choices, characters that come in parts, a stop string, an echo.

for my $case (
    [ 'n', $chat, { %$body, n => 3 }, [ 9000, 20000 ] ],
    [ 'bytes', $chat, script('bytes=1 delay=5 text='
                             . '%e2%82%ac%f0%9f%98%80%c3%a9x' x 8),
      [ 3000, 5000 ] ],
    [ 'a stop string', $chat, script('tokens=60 delay=5', stop => ' w50'),
      [ 3000, 5000 ] ],
    [ 'length', $chat, script('tokens=60 delay=5', max_tokens => 40),
      [ 3000, 5000 ] ],
    [ 'echo', $plain, { prompt => [ "a b c\nscript: tokens=40 delay=5",
                                    "d e f\nscript: tokens=40 delay=5" ],
                        echo => $true, logprobs => 1, stream => $true },
      [ 6000, 9000 ] ],
    [ 'a prompt of blocks', $chat, do {
        my $b = script('tokens=60 delay=5');
        unshift @{ $b->{messages} }, { role => 'system',
                                       content => 'word ' x 1000 };
        $b }, [ 4000 ] ],
) {
    my ($what, $uri, $body, $at) = @$case;
    my $want = got($t->request('POST', $uri, $body));
    my $r = stream($uri, $body, $at, \&again);
    finished($r, $want, $what);
    if ($what eq 'a prompt of blocks') {
        my @s = ($t->submits())[-2, -1];
        is($s[1]{tags}, $s[0]{tags}, "$what: the same tags");
        ok($s[1]{tags}, "$what: there are some");
    }
}

# In the queue still, and before the first token.

$n = $t->submits();
$r = answer($chat, whole(script('first=400 tokens=3')), .1, \&again);
is($r->{json}{choices}[0]{message}{content}, 'w1 w2 w3', 'in the queue');
is(scalar($t->submits()), $n + 2, 'in the queue: submitted again');
is(($t->submits())[-1]{resume_bytes}, 0, 'in the queue: from the start');
$r = answer($chat, whole(script('prefill=400 tokens=3')), .2, \&again);
is($r->{json}{choices}[0]{message}{content}, 'w1 w2 w3', 'no token yet');
like(($t->submits())[-1]{flags}, qr/seed/, 'no token yet: the same seed');

# A death at the very end, and an orderly one.

$body = script('tokens=20 delay=5 die_after=20');
$want = got($t->request('POST', $chat, script('tokens=20 delay=5')));
my $c = $t->connect();
$t->send_request($c, 'POST', $chat, $body, Connection => 'close');
ok($t->wait_for(sub { !$t->alive('engine') }), 'it dies before FINISH');
engine();
finished($t->read_response($c), $want, 'all tokens were there');

$body = script('tokens=60 delay=5');
$want = got($t->request('POST', $chat, $body));
finished(stream($chat, $body, [ 4000 ], sub { $t->stop('engine'); engine() }),
         $want, 'SIGTERM');

# It hangs; it lies.

$c = $t->connect();
$t->send_request($c, 'POST', $chat, script('tokens=60 delay=5 hang_after=20'),
                 Connection => 'close');
ok($t->wait_for(sub { $t->read_file('logs/error.log') =~ /heartbeat/ }, 20),
   'hung: noticed');
again();
$r = $t->read_response($c);
finished($r, $want, 'hung');
like($r->{body}, qr/^: keep-alive$/m, 'hung: comments while it waits');

for my $c (qw/ head size type text id zero order token /) {
    finished($t->request('POST', $chat, script('tokens=60 delay=5 '
                                               . "corrupt=$c corrupt_after=9")),
             $want, "violation ($c)");
}

# A client that does not read has its credit, no more.

my $long = script('tokens=20000 delay=0 batch=16');
my $all = got($t->request('POST', $chat, $long));
$c = $t->connect();
$t->send_request($c, 'POST', $chat, $long, Connection => 'close');
for (1 .. 3) {
    sleep .4;
    again();
}
sleep .4;
finished($t->read_response($c), $all, 'a slow reader');
cmp_ok((grep { $_->{resume_bytes} } $t->submits())[-1]{credit}, '<', 65536,
       'a slow reader: what is on its way counts');

# Nobody comes; another model comes; the client leaves.

sub failed {
    my ($r, $what) = @_;
    ok(!$r->{error}, "$what: a clean end");
    like($r->{body}, qr/data: \{"error":.*\n\n$/, "$what: an error event")
        if ($r->{headers}{'content-type'} // '') =~ /event/;
    unlike($r->{body}, qr/\[DONE\]/, "$what: not the end");
}

my $kill = sub { $t->stop('engine', 'KILL') };
back('before an end');
my $start = time();
failed(stream("/short$chat", $body, [ 4000 ], $kill), 'nobody comes');
cmp_ok(time() - $start, '>', .9, 'nobody comes: it waited');
engine();
back('after nobody');
$r = answer("/short$chat", whole($body), .15, $kill);
like($r->{body}, qr/\{"error":.*lost/, 'nobody comes, not streamed');
engine();
back('after nobody, not streamed');

failed(stream("/zero$chat", $body, [ 4000 ], $kill, limit => 20), 'resume=0');
$t->error_ok($t->request('POST', $chat, $body), 503, 'none: new ones get 503');
engine();
back('after zero');

$r = stream($chat, $body, [ 4000 ], sub { again('--fingerprint', 77) });
failed($r, 'another model');
like($r->{body}, qr/another model/, 'another model: said so');
again();
back('after another model');

$n = $t->submits();
$c = $t->connect();
$t->send_request($c, 'POST', $chat, $body);
$t->read_response($c, on_data => sub { 'stop' });
$kill->();
close $c->{sock};
ok($t->wait_for(sub { $t->read_file('logs/llm.log') =~ / cancelled / }),
   'the client leaves while it waits');
engine();
back('after it left');
is(scalar($t->submits()), $n + 1, 'the client left: nothing comes again');

# What the engine dies of is not given to every engine.

$c = $t->connect();
$n = $t->submits();
$t->send_request($c, 'POST', $chat, script('tokens=5 die_after=0'));
for (1 .. 8) {
    last if !$t->wait_for(sub { !$t->alive('engine') }, 4);
    engine();
}
$r = $t->read_response($c);
failed($r, 'deadly');
is(scalar($t->submits()), $n + 4, 'deadly: four times in all');
back('after deadly ones');

# A reload and a graceful end while it waits.

$c = $t->connect();
$t->send_request($c, 'POST', $chat, $body, Connection => 'close');
$t->read_response($c, on_data => sub { 'stop' });
$kill->();
$t->reload();
sleep .3;
engine();
$c->{buf} = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" . $c->{buf};
$r = $t->read_response($c);
like(got($r), qr/w60.*"finish":"stop"|"finish":"stop".*w60/, 'a reload');
ok($t->wait_for(sub { $t->workers() == 1 }, 10), 'a reload: the worker ends');
back('after a reload');

# nginx is told to go while streams wait: it goes when they have ended.

my @wait = map { $t->connect() } 1, 2;
for my $i (0, 1) {
    $t->send_request($wait[$i], 'POST', ('', '/short')[$i] . $chat, $body,
                     Connection => 'close');
    $t->read_response($wait[$i], on_data => sub { 'stop' });
    $wait[$i]{buf} = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
        . $wait[$i]{buf};
}
$kill->();
ok($t->wait_for(sub { $t->request('GET', '/v1/models')->{status} == 503 }),
   'an end: the engine is gone');
kill 'QUIT', $t->pid('nginx');
failed($t->read_response($wait[1]), 'an end, and nobody comes');
ok($t->alive('nginx'), 'an end: nginx waits for the other');
engine();
like(got($t->read_response($wait[0])), qr/w60.*"finish":"stop"|"finish":"stop".*w60/,
     'an end: it goes on');
ok($t->wait_for(sub { !$t->alive('nginx') }, 10), 'an end: nginx goes');
$t->nginx($conf);
back('after an end');

# The real engine.

my $model = Test::LLM::top() . '/engine/models/wordnet-tiny';

SKIP: {
    skip 'no model', 1 if !-e "$model/model.safetensors";

    $t->stop('engine');
    @kind = ('real', $model);
    @args = ('--max-context', 1024, '--kernels', 'generic', '--threads', 1);
    engine();
    back('real');

    my %more = (max_tokens => 150, ignore_eos => $true, stream => $true,
                stream_options => { include_usage => $true });
    my %cases = (
        sampled => [ $plain, { prompt => 'a falcon is', temperature => 1,
                               seed => 7, logprobs => 2, %more } ],
        greedy => [ $plain, { prompt => 'a falcon is', temperature => 0,
                              logprobs => 1, %more } ],
        penalties => [ $plain, { prompt => 'a heron', temperature => 1.5,
                                 seed => 3, presence_penalty => 1,
                                 frequency_penalty => .5, %more } ],
        n => [ $chat, { messages => [ { role => 'user',
                                        content => 'What is a falcon?' } ],
                        n => 3, temperature => 1, seed => 5, %more } ],
        echo => [ $plain, { prompt => 'word ' x 100, echo => $true, seed => 4,
                            logprobs => 1, %more } ],
    );
    my (%want, %sum, %len);

    for my $k (sort keys %cases) {
        my ($uri, $b) = @{ $cases{$k} };
        my $r = $t->request('POST', $uri, $b);
        ($want{$k}, $len{$k}) = (got($r), length $r->{body});
        again();                     # an empty cache
        back($k);
        $sum{$k} = got($t->request('POST', $uri, whole($b)));
        again();                     # an empty cache
        back($k);
    }

    for my $k (sort keys %cases) {
        my ($uri, $b) = @{ $cases{$k} };
        finished(stream($uri, $b, [ map { $len{$k} * $_ / 10 } 2, 4, 7 ],
                        \&again),
                 $want{$k}, "$k, killed three times");
        again();
        back("$k, not streamed");
        finished(answer($uri, whole($b), .15, \&again), $sum{$k},
                 "$k, killed, not streamed");
        again();
        back("$k, ended");
    }

    # Answers that end by themselves, killed anywhere.

    my $q = { messages => [ { role => 'user', content => 'What is a falcon?' } ],
              temperature => 0, max_tokens => 60, stream => $true };
    my $text = got($t->request('POST', $chat, $q));
    my $len = length $t->request('POST', $chat, $q)->{body};
    my @bad = grep {
        back('falcon');
        got(stream($chat, $q, [ $_ ], \&again)) ne $text
    } 0, map { $len - 150 - $_ * 150 } 1 .. 5;
    is("@bad", '', 'chat: the same, wherever it was killed');

    # Many at once.

    back('before many');
    my @c = map { $t->connect() } 1 .. 12;
    $t->send_request($_, 'POST', $cases{sampled}[0], $cases{sampled}[1],
                     Connection => 'close') for @c;
    for (1 .. 3) {
        sleep .4;
        again();
    }
    my @r = map { got($t->read_response($_, limit => 60)) } @c;
    s/"prompt_(?:tokens_details":\{[^}]*\}|cache_\w+":\d+),?//g for @r,
        my $one = $want{sampled};
    is(scalar(grep { $_ eq $one } @r), 12, 'many, killed three times');

    # Stopped, then replaced.

    $c = $t->connect();
    $t->send_request($c, 'POST', $cases{greedy}[0], $cases{greedy}[1],
                     Connection => 'close');
    sleep .15;
    my $before = () = $t->read_file('logs/error.log') =~ /heartbeat/g;
    kill 'STOP', $t->pid('engine');
    ok($t->wait_for(sub {
        (() = $t->read_file('logs/error.log') =~ /heartbeat/g) > $before }, 20),
       'stopped: noticed');
    again();
    my $got = got($t->read_response($c));
    s/"prompt_(?:tokens_details":\{[^}]*\}|cache_\w+":\d+),?//g for $got,
        $one = $want{greedy};
    is($got, $one, 'stopped and replaced');
}

is(scalar(() = $t->read_file('logs/error.log') =~ /exited on signal/g), 0,
   'no worker died');

$t->done();
done_testing();
