#!/usr/bin/perl

# What a client sees: endpoints below any location, methods, the exact shape of
# each kind of answer, headers, and connections that go on after all of it.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::Bin/lib";

use IO::Uncompress::Gunzip qw/ gunzip /;
use JSON::PP;
use Test::LLM;
use Test::More;

my ($true, $false) = (JSON::PP::true(), JSON::PP::false());
my $t = Test::LLM->new();

$t->engine('scripted', '--model', 'org/tiny,alias');
$t->nginx(sprintf(<<'CONF', $t->tls()));
    llm_engine e unix:%%%%SOCKET%%%%;
    gzip_types text/event-stream application/json;
    gzip_min_length 1;

    server {
        listen %%%%LISTEN%%%%;
        listen %%%%LISTEN:https%%%% ssl http2;
        %s

        location / { llm_pass e; }
        location /v1/ { llm_pass e; }
        location /api/ { llm_pass e; }
        location /beta { llm_pass e; }
        location ~ ^/re/\d+/ { llm_pass e; }
        location = /exact/v1/completions { llm_pass e; }
        location /to/ { try_files /none @named; }
        location @named { llm_pass e; }
        location /if/ {
            if ($arg_llm) { llm_pass e; break; }
            return 200 "no";
        }
        location /gzip/ { gzip on; llm_pass e; }
        location /rate/ { limit_rate 20k; llm_pass e; }
        location /sub/ {
            sub_filter_types *;
            sub_filter_once off;
            sub_filter w2 W2;
            llm_pass e;
        }
        location /old/ { chunked_transfer_encoding off; llm_pass e; }
        location /plain/ { return 200 "plain"; }
    }
CONF

my $chat = { messages => [ { role => 'user', content => 'script: tokens=3' } ]};
my $text = { prompt => 'script: tokens=3' };

sub chat {
    my ($script, %more) = @_;
    return { messages => [ { role => 'user', content => "script: $script" } ],
             %more };
}

# Endpoints.

for my $c (
    [ '/v1/chat/completions' => 200 ], [ '/chat/completions' => 200 ],
    [ '/v1/v1/chat/completions' => 200 ], [ '/api/chat/completions' => 200 ],
    [ '/api/v1/chat/completions' => 200 ],
    [ '/beta/chat/completions' => 200 ],
    [ '/beta/v1/chat/completions' => 200 ],
    [ '/re/7/v1/chat/completions' => 200 ],
    [ '/re/7/chat/completions' => 200 ],
    [ '/to/v1/chat/completions' => 200 ],
    [ '/if/v1/chat/completions?llm=1' => 200 ],
    [ '/v1//chat/completions' => 200 ], [ '/v1/x/../chat/completions' => 200 ],
    [ '/v1/chat/%63ompletions?x=y' => 200 ],
    [ '/v1/chat/completions/' => 404 ], [ '/v1/chat' => 404 ],
    [ '/v1/chat/completionsx' => 404 ], [ '/x/chat/completions' => 404 ],
    [ '/betachat/completions' => 404 ], [ '/v1/' => 404 ], [ '/' => 404 ],
    [ '/v2/chat/completions' => 404 ], [ '/V1/chat/completions' => 404 ],
    [ '/v1/embeddings' => 404 ],
) {
    my $r = $t->request('POST', $c->[0], $chat);
    is($r->{status}, $c->[1], "POST $c->[0]");
    is($r->{json}{object}, 'chat.completion', "POST $c->[0]: a chat")
        if $c->[1] == 200;
    $t->error_ok($r, 404, "POST $c->[0]: error object") if $c->[1] == 404;
}

for my $uri (qw{ /v1/completions /completions /beta/completions
                 /re/1/completions /api/v1/completions /exact/v1/completions })
{
    my $r = $t->request('POST', $uri, $text);
    is($r->{json}{object} // $r->{body}, 'text_completion', "POST $uri");
}

is($t->request('POST', '/if/v1/chat/completions', $chat)->{body}, 'no',
   'llm_pass in "if" that does not hold');

# Methods.

for my $c ([ GET => '/v1/chat/completions', 'POST' ],
           [ PUT => '/v1/completions', 'POST' ],
           [ DELETE => '/v1/completions', 'POST' ],
           [ OPTIONS => '/chat/completions', 'POST' ],
           [ POST => '/v1/models', 'GET, HEAD' ],
           [ DELETE => '/v1/models/org/tiny', 'GET, HEAD' ])
{
    my ($method, $uri, $allow) = @$c;
    my $r = $t->request($method, $uri, $method eq 'GET' ? undef : $text);
    $t->error_ok($r, 405, "$method $uri", code => 'method_not_allowed');
    is($r->{headers}{allow}, $allow, "$method $uri: Allow");
}

my $r = $t->request('HEAD', '/v1/chat/completions');
is($r->{status}, 405, 'HEAD of chat');
ok($r->{headers}{'content-length'} > 0, 'HEAD of chat: length of an object');

# Models.

$r = $t->request('GET', '/v1/models');
is_deeply([ sort keys %{ $r->{json} } ], [ qw/ data object / ], 'models');
is($r->{json}{object}, 'list', 'models: a list');
is_deeply([ map { $_->{id} } @{ $r->{json}{data} } ], [ qw{ org/tiny alias } ],
          'models: all names');
for (@{ $r->{json}{data} }) {
    is($_->{object}, 'model', "model $_->{id}");
    like($_->{created}, qr/^\d+$/, "model $_->{id}: created");
    ok(length $_->{owned_by}, "model $_->{id}: owned_by");
}
my $models = $r->{body};

for my $name (qw{ org/tiny org%2Ftiny alias }) {
    (my $id = $name) =~ s/%2F/\//;
    $r = $t->request('GET', "/v1/models/$name");
    is($r->{json}{id}, $id, "models/$name");
}
for my $name (qw{ absent org org/tiny/x ORG/tiny alia }) {
    $t->error_ok($t->request('GET', "/v1/models/$name"), 404, "models/$name",
                 code => 'model_not_found', param => 'model');
}
$t->error_ok($t->request('GET', '/v1/models/%ff%fe%22'), 404,
             'models/ with odd bytes');
$t->error_ok($t->request('GET', '/v1/models/'), 404, 'models/ without a name');

$r = $t->request('HEAD', '/v1/models');
is($r->{status}, 200, 'HEAD of models');
is($r->{headers}{'content-length'}, length $models, 'HEAD of models: length');
is($t->request('GET', '/v1/models', 'a body')->{body}, $models,
   'models, with a body that nobody wants');

# One answer.

my $usage = {
    prompt_tokens => 9, completion_tokens => 3, total_tokens => 12,
    prompt_tokens_details => { cached_tokens => 4 },
    completion_tokens_details => { reasoning_tokens => 0 },
    prompt_cache_hit_tokens => 4, prompt_cache_miss_tokens => 5,
};

sub strip {
    my ($what, $prefix, $answer) = @_;
    my ($id, $created) = delete @$answer{qw/ id created /};

    like($id, qr/^$prefix-[0-9a-f]{32}$/, "$what: id");
    cmp_ok(abs($created - time()), '<', 20, "$what: created");
    return $answer;
}

my $counted = 'prompt_tokens=9 cached=4';

$r = $t->request('POST', '/v1/chat/completions', chat("tokens=3 $counted"));
is_deeply(strip('chat', 'chatcmpl', $r->{json}), {
    object => 'chat.completion', model => 'org/tiny', usage => $usage,
    choices => [ { index => 0, logprobs => undef, finish_reason => 'stop',
                   message => { role => 'assistant', content => 'w1 w2 w3' } } ]
}, 'chat: shape');
is($r->{headers}{'content-type'}, 'application/json', 'chat: type');
is($r->{headers}{'content-length'}, length $r->{body}, 'chat: length');

$r = $t->request('POST', '/v1/completions', {
    model => 'alias', prompt => "script: tokens=3 $counted" });
is_deeply(strip('completion', 'cmpl', $r->{json}), {
    object => 'text_completion', model => 'alias', usage => $usage,
    choices => [ { index => 0, logprobs => undef, finish_reason => 'stop',
                   text => 'w1 w2 w3' } ]
}, 'completion: shape');

$r = $t->request('POST', '/v1/chat/completions', chat(
    "reasoning=2 tokens=1 $counted", logprobs => $true, top_logprobs => 1));
my $choice = $r->{json}{choices}[0];
is_deeply($choice->{message}, { role => 'assistant', content => 'w1',
                                reasoning_content => 'r1 r2' },
          'reasoning: message');
is($r->{json}{usage}{completion_tokens_details}{reasoning_tokens}, 2,
   'reasoning: usage');
is($r->{json}{usage}{completion_tokens}, 3, 'reasoning: all tokens count');
is(scalar @{ $choice->{logprobs}{content} }, 1, 'reasoning: logprobs');
is(scalar @{ $choice->{logprobs}{reasoning_content} }, 2,
   'reasoning: its own logprobs');

for my $reason (qw/ stop length /) {
    $r = $t->request('POST', '/v1/chat/completions',
                     chat("tokens=1 finish=$reason"));
    is($r->{json}{choices}[0]{finish_reason}, $reason, "finish: $reason");
}

# Several.

$r = $t->request('POST', '/v1/completions', {
    prompt => [ 'a b', [ 1, 2, 3 ], 'c' ], n => 2 });
is_deeply([ map { $_->{text} } @{ $r->{json}{choices} } ],
          [ 'a b', 'a b', 't1 t2 t3', 't1 t2 t3', 'c', 'c' ],
          'n and prompts: texts in order');
is_deeply([ map { $_->{index} } @{ $r->{json}{choices} } ], [ 0 .. 5 ],
          'n and prompts: indices');
is($r->{json}{usage}{prompt_tokens}, 6, 'n: a prompt counts once');
is($r->{json}{usage}{completion_tokens}, 12, 'n: all that was generated');

# Log-probabilities.

$r = $t->request('POST', '/v1/chat/completions', chat(
    'text=%C3%A9%0Aa bytes=1', logprobs => $true, top_logprobs => 2));
my $lp = $r->{json}{choices}[0]{logprobs};
is($r->{json}{choices}[0]{message}{content}, "\x{e9}\na", 'logprobs: text');
is_deeply([ sort keys %$lp ], [ qw/ content refusal / ], 'logprobs: chat');
is_deeply([ map { $_->{bytes} } @{ $lp->{content} } ],
          [ [ 0xc3 ], [ 0xa9 ], [ 10 ], [ 97 ] ], 'logprobs: bytes');
my ($first, $last) = @{ $lp->{content} }[0, 3];
is_deeply([ sort keys %$last ], [ qw/ bytes logprob token top_logprobs / ],
          'logprobs: entry');
is($last->{token}, 'a', 'logprobs: token');
is($first->{token}, "\x{fffd}", 'logprobs: half a character');
is(scalar @{ $last->{top_logprobs} }, 2, 'logprobs: alternatives');
is_deeply([ sort keys %{ $last->{top_logprobs}[0] } ],
          [ qw/ bytes logprob token / ], 'logprobs: an alternative');

my $echo = { prompt => "one\ntw\x{f6} \x{1f600}x three", echo => $true,
             logprobs => 2, max_tokens => 0 };
$r = $t->request('POST', '/v1/completions', $echo);
$lp = $r->{json}{choices}[0]{logprobs};
is($r->{json}{choices}[0]{text}, $echo->{prompt}, 'echo: text');
is_deeply([ sort keys %$lp ],
          [ qw/ text_offset token_logprobs tokens top_logprobs / ],
          'echo: lists');
is(join('', @{ $lp->{tokens} }), $echo->{prompt}, 'echo: tokens');
is_deeply($lp->{text_offset}, [ 0, 3, 7, 10 ],
          'echo: offsets count characters');
is($lp->{token_logprobs}[0], undef, 'echo: nothing before the first');
is($lp->{top_logprobs}[0], undef, 'echo: no alternatives of the first');
is(scalar(grep { $_ < 0 } @{ $lp->{token_logprobs} }[1 .. 3]), 3,
   'echo: logprobs of the others');
is(ref $lp->{top_logprobs}[1], 'HASH', 'echo: alternatives');
ok(exists $lp->{top_logprobs}[1]{ $lp->{tokens}[1] },
   'echo: the token itself among them');
is($r->{json}{choices}[0]{finish_reason}, 'length', 'echo: finish');
is($r->{json}{usage}{completion_tokens}, 0, 'echo: usage');

$r = $t->request('POST', '/v1/completions', {
    prompt => 'a b', echo => $true, logprobs => 0 });
$lp = $r->{json}{choices}[0]{logprobs};
is($r->{json}{choices}[0]{text}, 'a ba b', 'echo, then generated');
is($lp->{top_logprobs}, undef, 'logprobs 0: no alternatives');
is_deeply($lp->{text_offset}, [ 0, 1, 3, 4 ], 'logprobs 0: offsets');

# Streams.

sub stream {
    my ($what, $uri, $body) = @_;
    my $r = $t->request('POST', $uri, { %$body, stream => $true });

    is($r->{headers}{'content-type'}, 'text/event-stream', "$what: type");
    is($r->{headers}{'cache-control'}, 'no-cache', "$what: cache-control");
    is($r->{headers}{'x-accel-buffering'}, 'no', "$what: buffering");
    ok(!defined $r->{headers}{'content-length'}, "$what: no length");
    unlike($r->{body}, qr/^(?!data: |$)/m, "$what: data lines only");

    my @e = $t->sse($r->{body});
    is(pop @e, '[DONE]', "$what: [DONE]");
    my %ids = map { $_->{id} => 1 } @e;
    my %created = map { $_->{created} => 1 } @e;
    is(keys %ids, 1, "$what: one id");
    is(keys %created, 1, "$what: one time");
    like($e[0]{id}, $uri =~ /chat/ ? qr/^chatcmpl-/ : qr/^cmpl-/, "$what: id");
    is(scalar(grep { $_->{model} ne 'org/tiny' } @e), 0, "$what: model");
    delete @$_{qw/ id created model /} for @e;

    return @e;
}

sub chunk {
    my ($delta, $finish, %more) = @_;
    return { object => 'chat.completion.chunk', choices => [ {
        index => 0, delta => $delta, logprobs => undef,
        finish_reason => $finish } ], %more };
}

my @e = stream('chat stream', '/v1/chat/completions', $chat);
is_deeply(\@e, [
    chunk({ role => 'assistant', content => '' }),
    chunk({ content => 'w1' }), chunk({ content => ' w2' }),
    chunk({ content => ' w3' }), chunk({}, 'stop'),
], 'chat stream: shape');

@e = stream('usage', '/v1/chat/completions', chat(
    "reasoning=1 tokens=2 $counted",
    stream_options => { include_usage => $true }));
my @none = (usage => undef);
is_deeply(\@e, [
    chunk({ role => 'assistant', content => '' }, undef, @none),
    chunk({ reasoning_content => 'r1' }, undef, @none),
    chunk({ content => 'w1' }, undef, @none),
    chunk({ content => ' w2' }, undef, @none),
    chunk({}, 'stop', @none),
    { object => 'chat.completion.chunk', choices => [], usage => {
        %$usage, completion_tokens_details => { reasoning_tokens => 1 } } },
], 'usage: null, then once');

@e = stream('text stream', '/v1/completions', {
    %$text, stream_options => { include_usage => $false } });
is_deeply(\@e, [
    (map { { object => 'text_completion', choices => [ {
        index => 0, text => $_, logprobs => undef, finish_reason => undef } ] }
    } 'w1', ' w2', ' w3'),
    { object => 'text_completion', choices => [ {
        index => 0, text => '', logprobs => undef, finish_reason => 'stop' } ] }
], 'text stream: shape');

@e = stream('echo stream', '/v1/completions', {
    prompt => "a \x{f6}b", echo => $true, logprobs => 1, max_tokens => 2 });
is(join('', map { $_->{choices}[0]{text} } @e), "a \x{f6}ba \x{f6}b",
   'echo stream: text');
is_deeply([ map { @{ $_->{choices}[0]{logprobs}{text_offset} // [] } } @e ],
          [ 0, 1, 4, 5 ], 'echo stream: offsets go on');
is_deeply([ map { @{ $_->{choices}[0]{logprobs}{tokens} // [] } } @e ],
          [ 'a', " \x{f6}b", 'a', " \x{f6}b" ], 'echo stream: tokens');

@e = stream('logprobs stream', '/v1/chat/completions', chat(
    'reasoning=1 tokens=1', logprobs => $true));
is(scalar @{ $e[1]{choices}[0]{logprobs}{reasoning_content} }, 1,
   'logprobs stream: of reasoning');
is($e[2]{choices}[0]{logprobs}{content}[0]{token}, 'w1',
   'logprobs stream: of content');

@e = stream('choices stream', '/v1/chat/completions', chat(
    'tokens=4', n => 3, stream_options => { include_usage => $true }));
my $end = pop @e;
is_deeply($end->{choices}, [], 'choices stream: usage at the end');
is($end->{usage}{completion_tokens}, 12, 'choices stream: usage of all');
for my $i (0 .. 2) {
    my @of = grep { $_->{choices}[0]{index} == $i } @e;
    is($of[0]{choices}[0]{delta}{role}, 'assistant', "choice $i: role first");
    is(join('', map { $_->{choices}[0]{delta}{content} // '' } @of),
       'w1 w2 w3 w4', "choice $i: text");
    is($of[-1]{choices}[0]{finish_reason}, 'stop', "choice $i: finish last");
}

# Text of every kind arrives as it is.

my $odd = join '', map { chr } 1 .. 127, 0xa0, 0x2028, 0x2029, 0xfeff,
                               0xfffd, 0x1f600, 0x10ffff;
(my $coded = do { my $u = $odd; utf8::encode($u); $u })
    =~ s/([^a-z])/sprintf '%%%02X', ord $1/ge;
for my $bytes (0, 1) {
    $r = $t->request('POST', '/v1/chat/completions',
                     chat("text=$coded bytes=$bytes"));
    is($r->{json}{choices}[0]{message}{content}, $odd, "odd text ($bytes)");
    $r = $t->request('POST', '/v1/chat/completions',
                     chat("text=$coded bytes=$bytes", stream => $true));
    is($t->sse_text($r->{body}), $odd, "odd text in a stream ($bytes)");
}

# Request ids.

for my $c ([ 'abc-123_x.y:z/w+=' => 1 ], [ 'x' x 128 => 1 ], [ 'x' x 129 => 0 ],
           [ 'a b' => 0 ], [ '"' => 0 ], [ "\xc3\xa9" => 0 ], [ '' => 0 ])
{
    for my $uri ('/v1/completions', '/v1/none') {
        $r = $t->request('POST', $uri, $text,
                         headers => { 'X-Request-ID' => $c->[0] });
        my $id = $r->{headers}{'x-request-id'};
        $c->[1] ? is($id, $c->[0], "request id, $uri: kept")
                : like($id, qr/^[0-9a-f]{32}$/, "request id, $uri: made");
    }
}

# HTTP/1.0.

$r = $t->request('POST', '/v1/chat/completions', { %$chat, stream => $true },
                 headers => { ':version' => '1.0' });
ok($r->{closed} && !$r->{headers}{'transfer-encoding'}, 'HTTP/1.0: no chunks');
is($t->sse_text($r->{body}), 'w1 w2 w3', 'HTTP/1.0: stream');

my $c = $t->connect();
for (1, 2) {
    $r = $t->request('POST', '/v1/chat/completions', $chat, conn => $c,
        headers => { ':version' => '1.0', Connection => 'keep-alive' });
    is($r->{json}{choices}[0]{message}{content}, 'w1 w2 w3',
       'HTTP/1.0, kept alive');
}

$r = $t->request('POST', '/old/chat/completions', { %$chat, stream => $true });
is($t->sse_text($r->{body}), 'w1 w2 w3', 'without chunks');

# Pipelining.

$c = $t->connect();
my @pipe = ([ POST => '/v1/chat/completions', chat('tokens=5 delay=20',
                                                   stream => $true) ],
            [ POST => '/v1/completions', $text ],
            [ GET => '/v1/models' ], [ GET => '/plain/' ],
            [ POST => '/v1/completions', { prompt => 1 } ],
            [ POST => '/v1/completions', { %$text, stream => $true } ]);
my $wire = join '', map {
    my $b = $t->encode($_->[2]);
    "$_->[0] $_->[1] HTTP/1.1\r\nHost: x\r\nContent-Length: " . length($b)
        . "\r\n\r\n$b"
} @pipe;
$t->send_raw($c, $wire);
my @got = map { $t->read_response($c) } @pipe;
is(join(' ', map { $_->{status} } @got), '200 200 200 200 400 200',
   'pipelining: in order');
is($t->sse_text($got[0]{body}), 'w1 w2 w3 w4 w5', 'pipelining: a stream');
is($got[1]{json}{choices}[0]{text}, 'w1 w2 w3', 'pipelining: an answer');
is($t->sse_text($got[5]{body}), 'w1 w2 w3', 'pipelining: after an error');

# A connection is kept after everything.

$c = $t->connect();
my @all = (
    [ 200, POST => '/v1/chat/completions', $chat ],
    [ 200, POST => '/v1/chat/completions', { %$chat, stream => $true } ],
    [ 404, POST => '/v1/none', $chat ], [ 405, GET => '/v1/completions' ],
    [ 405, PUT => '/v1/completions', $text ],
    [ 400, POST => '/v1/completions', '{' ],
    [ 400, POST => '/v1/completions', { prompt => 'x', n => 0 } ],
    [ 404, POST => '/v1/completions', { prompt => 'x', model => 'none' } ],
    [ 400, POST => '/v1/chat/completions', chat('error=length') ],
    [ 429, POST => '/v1/chat/completions', chat('error=queue') ],
    [ 503, POST => '/v1/chat/completions', chat('error=timeout') ],
    [ 400, POST => '/v1/chat/completions', chat('error=invalid',
                                                stream => $true) ],
    [ 200, POST => '/v1/chat/completions', chat('tokens=9 fail_after=3',
                                                stream => $true) ],
    [ 404, GET => '/v1/models/none' ], [ 200, GET => '/v1/models' ],
    [ 200, HEAD => '/v1/models' ], [ 405, HEAD => '/v1/completions' ],
    [ 200, POST => '/v1/completions', $text ],
);
for (@all) {
    my ($status, $method, $uri, $body) = @$_;
    $r = $t->request($method, $uri, $body, conn => $c);
    is($r->{status}, $status, "kept alive: $method $uri, $status");
    isnt($r->{headers}{connection}, 'close', '... and still');
}

# Expect.

$c = $t->connect();
my $b = $t->encode($text);
$t->send_raw($c, "POST /v1/completions HTTP/1.1\r\nHost: x\r\nExpect: "
             . "100-continue\r\nContent-Length: " . length($b) . "\r\n\r\n");
is($t->read_response($c)->{status}, 100, 'Expect: continue');
$t->send_raw($c, $b);
is($t->read_response($c)->{json}{choices}[0]{text}, 'w1 w2 w3',
   'Expect: answer');

# nginx's own filters around it.

$r = $t->request('POST', '/gzip/chat/completions', chat('tokens=50 delay=20',
    stream => $true), headers => { 'Accept-Encoding' => 'gzip' });
is($r->{headers}{'content-encoding'}, 'gzip', 'gzip: a stream');
gunzip(\$r->{body}, \my $plain);
like($plain // '', qr/w50.*\[DONE\]\n\n$/s, 'gzip: a stream, whole');
cmp_ok(@{ $r->{chunks} }, '>', 10, 'gzip: as it comes');
$r = $t->request('GET', '/gzip/none', undef,
                 headers => { 'Accept-Encoding' => 'gzip' });
gunzip(\$r->{body}, \$plain);
like($plain // '', qr/^\{"error":/, 'gzip: an error object');

$r = $t->request('POST', '/rate/chat/completions', chat('tokens=200',
    stream => $true));
like($r->{body}, qr/w200.*\[DONE\]\n\n$/s, 'limit_rate: a stream, whole');
cmp_ok($r->{end} - $r->{start}, '>', 1, 'limit_rate: slow');

$r = $t->request('POST', '/sub/chat/completions', chat('tokens=3',
    stream => $true));
is($t->sse_text($r->{body}), 'w1 W2 w3', 'sub_filter');

# HTTP/2.

@got = $t->h2(requests => [
    { uri => '/v1/chat/completions', body => chat("tokens=3 $counted") },
    { uri => '/v1/chat/completions', body => { %$chat, stream => $true } },
    { uri => '/v1/models', method => 'GET' },
    { uri => '/v1/models', method => 'HEAD' },
    { uri => '/v1/completions', method => 'GET' },
    { uri => '/v1/completions', body => { prompt => 1 } },
    { uri => '/v1/none', body => '{}' },
    { uri => '/v1/completions', method => 'HEAD' },
    { uri => '/gzip/chat/completions', body => { %$chat, stream => $true } },
    { uri => '/v1/completions', body => '{' },
]);
is(join(' ', map { $_->{status} } @got),
   '200 200 200 200 405 400 404 405 200 400', 'HTTP/2: statuses');
is_deeply(strip('HTTP/2', 'chatcmpl', $t->decode($got[0]{text}))->{usage},
          $usage, 'HTTP/2: an answer');
is($t->sse_text($got[1]{text}), 'w1 w2 w3', 'HTTP/2: a stream');
is($got[1]{headers}{'content-type'}, 'text/event-stream', 'HTTP/2: its type');
is($got[2]{text}, $models, 'HTTP/2: models');
is($got[3]{headers}{'content-length'}, length $models, 'HTTP/2: HEAD');
$t->error_ok($got[4], 405, 'HTTP/2: 405');
is($got[4]{headers}{allow}, 'POST', 'HTTP/2: Allow');
$t->error_ok($got[5], 400, 'HTTP/2: 400', param => 'prompt');
$t->error_ok($got[6], 404, 'HTTP/2: 404');

# Conditions of a cache are not for answers that are made for each request.

for my $h (['If-None-Match', '*'], ['If-Match', '"x"'],
           ['If-Unmodified-Since', 'Mon, 01 Jan 2001 00:00:00 GMT'])
{
    my %h = @$h;
    is($t->request('POST', '/v1/chat/completions', { %$chat, stream => $_ },
                   headers => \%h)->{status}, 200, "$h->[0], stream $_")
        for $false, $true;
    is($t->request('GET', '/v1/models', '', headers => \%h)->{status}, 200,
       "$h->[0], models");
}

$t->done();
done_testing();
