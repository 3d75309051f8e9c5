#!/usr/bin/perl

# Parameters: what a client writes is what the engine gets, to the last bit,
# and what is wrong is refused by name before anything reaches the engine.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::Bin/lib";

use JSON::PP;
use Test::LLM;
use Test::More;

my ($true, $false, $null) = (JSON::PP::true(), JSON::PP::false(), undef);
my $t = Test::LLM->new();

$t->engine('scripted', '--model', 'tiny,other', '--fingerprint', 'a1b2c3d4e5');
$t->nginx(<<'CONF');
    llm_engine e unix:%%SOCKET%%;
    keepalive_requests 10000;
    server { listen %%LISTEN%%; location / { llm_pass e; } }
CONF

my $c = $t->connect();

sub body {
    my ($uri, $more) = @_;
    return $uri =~ /chat/ ? { messages => [ { role => 'user',
                                              content => 'x y' } ], %$more }
                          : { prompt => 'x y', %$more };
}

sub send_one {
    my ($uri, $body) = @_;
    my $r = $t->request('POST', $uri, $body, conn => $c);
    $c = $t->connect() if ($r->{headers}{connection} // 'close') eq 'close';
    return $r;
}

# What the engine was sent for these fields; chat unless `uri` is given.
# `given`: its flags less those that say what was not given.

sub sent {
    my ($more, $uri) = @_;
    $uri //= '/v1/chat/completions';
    my $n = $t->count('submit');
    my $r = send_one($uri, ref $more ? body($uri, $more) : $more);
    my @s = $t->submits();

    diag($r->{body}) if $r->{status} != 200;
    return {} if @s == $n;

    ($s[$n]{given} = $s[$n]{flags}) =~ s/own_\w+,//g;
    return $s[$n];
}

sub float { sprintf '%.9g', unpack 'f', pack 'f', $_[0] }

# Defaults.

my $s = sent({});
my %default = (
    endpoint => 'chat', flags => 'own_t,own_top_p,', temperature => 1,
    top_p => 1, min_p => 0,
    top_k => 0, repetition_penalty => 1, presence_penalty => 0,
    frequency_penalty => 0, seed => 0, max_tokens => 4294967295,
    max_context => 0, queue_max => 0, queue_timeout => 0, deadline => 0,
    priority => 0, rank_hint => -1, top_logprobs => 0,
    fingerprint => 'a1b2c3d4e5',
    resume_bytes => 0, messages => 1, stops => 0, 'message0.role' => 'user',
    message0 => 'x y',
);
is($s->{$_}, $default{$_}, "default: $_") for sort keys %default;
ok(!exists $s->{$_}, "default: no $_") for qw/ bias tenant tags ids text /;
cmp_ok($s->{credit}, '>=', 65536, 'credit comes with it');

$s = sent({}, '/v1/completions');
is($s->{endpoint}, 'completion', 'completion');
is($s->{max_tokens}, 16, 'completion: 16 tokens');
is($s->{text}, 'x y', 'completion: text');

my %null = map { $_ => $null } qw/
    model stream stream_options temperature top_p min_p top_k n seed stop
    logit_bias user max_tokens max_completion_tokens presence_penalty
    frequency_penalty repetition_penalty logprobs top_logprobs tools functions
    function_call tool_choice response_format suffix audio modalities
    prediction thinking reasoning_effort web_search_options ignore_eos /;
$s = sent(\%null);
is(join(' ', map { $s->{$_} // 'none' } sort keys %default),
   join(' ', map { $default{$_} } sort keys %default),
   'null is absent, whatever the field');
$s = sent({ map { $_ => $null } qw/ echo best_of logprobs max_tokens / },
          '/v1/completions');
is("$s->{max_tokens} $s->{given}", '16 ', 'null in completions');

# Values that arrive.

for my $case (
    [ temperature => 0, 0.7, 1e-3, 2, 0.1 ], [ top_p => 0.95, 1, 1e-6 ],
    [ min_p => 0, 0.05, 1 ], [ repetition_penalty => 1.1, 0.5, 100 ],
    [ presence_penalty => -2, -0.3, 2 ], [ frequency_penalty => -2, 1.7, 2 ],
) {
    my ($name, @values) = @$case;
    is(sent({ $name => $_ })->{$name}, float($_), "$name $_") for @values;
}

is(sent({ temperature => 1 })->{flags}, 'own_top_p,', 'temperature is given');
is(sent({ top_p => 1 })->{flags}, 'own_t,', 'top_p is given');
is(sent({ top_k => $_->[0] })->{top_k}, $_->[1], "top_k $_->[0]")
    for [ 0, 0 ], [ -1, 0 ], [ 1, 1 ], [ 2147483647, 2147483647 ];
is(sent({ $_ => 7 })->{max_tokens}, 7, $_)
    for qw/ max_tokens max_completion_tokens /;
is(sent({ max_tokens => 3, max_completion_tokens => 5 })->{max_tokens}, 5,
   'max_completion_tokens wins');
is(sent({ max_tokens => 4294967295 })->{max_tokens}, 4294967295,
   'max_tokens: the largest');
is(sent('{"messages":[{"role":"user","content":"x"}],"max_tokens":1e1}')
   ->{max_tokens}, 10, 'an integer written as 1e1');
is(sent('{"messages":[{"role":"user","content":"x"}],"temperature":15e-1}')
   ->{temperature}, 1.5, 'a number written as 15e-1');

is(sent({ ignore_eos => $true })->{given}, 'ignore_eos,', 'ignore_eos');
is(sent({ logprobs => $true })->{given}, 'logprobs,', 'logprobs');
is(sent({ logprobs => $false })->{given}, '', 'logprobs false');
is(sent({ logprobs => $true, top_logprobs => $_ })->{top_logprobs}, $_,
   "top_logprobs $_") for 0, 1, 20;
is(sent({ thinking => { type => 'enabled' } })->{given}, 'think,', 'thinking');
is(sent({ thinking => { type => 'disabled' } })->{given}, 'no_think,',
   'thinking disabled');
is(sent({ reasoning_effort => 'none' })->{given}, 'no_think,',
   'reasoning_effort none');
is(sent({ reasoning_effort => 'high' })->{given}, '', 'reasoning_effort high');

$s = sent({ echo => $true, logprobs => 5, max_tokens => 0 },
          '/v1/completions');
is("$s->{given} $s->{top_logprobs} $s->{max_tokens}", 'logprobs,echo, 5 0',
   'scoring');
is(sent({ logprobs => 0 }, '/v1/completions')->{given}, 'logprobs,',
   'completion: logprobs 0');

# Seeds, all 64 bits.

my $n = $t->count('submit');
my @seeds = ([ '0', '0' ], [ '1', '1' ],
             [ '9007199254740993', '9007199254740993' ],
             [ '9223372036854775807', '9223372036854775807' ],
             [ '-1', '18446744073709551615' ],
             [ '-9223372036854775808', '9223372036854775808' ], [ '-0', '0' ]);
for (@seeds) {
    my $got = sent(qq({"prompt":"x","seed":$_->[0]}), '/v1/completions');
    is($got->{seed}, $_->[1], "seed $_->[0]");
    is($got->{given}, 'seed,', "seed $_->[0]: given");
}
$s = sent('{"x":{"seed":5},"prompt":"x","y":["seed",7]}', '/v1/completions');
is($s->{given}, '', 'a seed elsewhere is none');

$n = $t->count('submit');
send_one('/v1/completions', { prompt => [ 'a', 'b' ], n => 2, seed => 10 });
my @s = $t->submits();
is(join(' ', map { "$_->{text}$_->{seed}" } @s[$n .. $#s]), 'a10 a11 b10 b11',
   'choices of a prompt have seeds of their own');

# Stop strings, biases, user.

is(sent({ stop => 'END' })->{stop0}, 'END', 'stop: one');
$s = sent({ stop => [ 'a', "\n\n", "\x{f6}", ' x' ] });
is(join('|', map { $s->{"stop$_"} } 0 .. 3), "a|\n\n|\xc3\xb6| x",
   'stop: several');
is(sent({ stop => [] })->{stops}, 0, 'stop: none');
is(sent({ stop => [ map { "s$_" } 1 .. 16 ] })->{stops}, 16, 'stop: 16');
is(sent({ stop => 'x' x 256 })->{'stop0.size'}, 256, 'stop: 256 bytes');

is(sent({ logit_bias => { 5 => -100 } })->{bias}, '5:-100', 'logit_bias');
is(sent('{"prompt":"x","logit_bias":{"0":1.5,"128814":-0.25,"7":100}}',
        '/v1/completions')->{bias}, '0:1.5,128814:-0.25,7:100',
   'logit_bias: several');
ok(!exists sent({ logit_bias => {} })->{bias}, 'logit_bias: empty');
is(scalar(split /,/, sent({ logit_bias => { map { $_ => 1 } 1 .. 1024 } })
                     ->{bias}), 1024, 'logit_bias: 1024');

is(sent({ user => "caf\x{e9}" })->{tenant}, "caf\xc3\xa9", 'user');
ok(!exists sent({ user => '' })->{tenant}, 'user: empty');

# Messages and prompts.

$s = sent({ messages => [
    { role => 'system', content => 's', name => 'n' },
    { role => 'developer', content => 'd' },
    { role => 'user', content => [ { type => 'text', text => 'a' },
                                   { type => 'text', text => 'b' } ] },
    { role => 'assistant', content => '', tool_calls => [], prefix => $false },
    { role => 'user', content => "\x{1f600}\t" },
] });
is(join('|', map { $s->{"message$_.role"} . '=' . $s->{"message$_"} } 0 .. 4),
   "system=s|system=d|user=a\nb|assistant=|user=\xf0\x9f\x98\x80\t",
   'messages');

is(sent({ prompt => [ 0, 5, 2147483647 ] }, '/v1/completions')->{ids},
   '0,5,2147483647', 'prompt: ids');
is(sent({ prompt => '' }, '/v1/completions')->{text}, '', 'prompt: empty');
$n = $t->count('submit');
send_one('/v1/completions', { prompt => [ 'a', [ 1, 2 ], 'b' ], stop => 'Z' });
@s = $t->submits();
is(join(' ', map { ($_->{text} // $_->{ids}) . $_->{stop0} } @s[$n .. $#s]),
   'aZ 1,2Z bZ', 'prompt: a list of either, each with all options');

is(sent({ model => 'other' })->{endpoint}, 'chat', 'model: an alias');

# Fields that ask for nothing, and unknown ones.

for ({ tools => [] }, { functions => [] }, { suffix => '' },
     { function_call => 'none' }, { tool_choice => 'auto' },
     { tool_choice => 'none' }, { response_format => { type => 'text' } },
     { modalities => [ 'text' ] }, { metadata => { a => 'b' } },
     { store => $true }, { service_tier => 'auto' }, { xyz => [ 1, { } ] },
     { parallel_tool_calls => $false })
{
    my ($name) = keys %$_;
    is(sent($_)->{endpoint}, 'chat', "accepted: $name "
       . JSON::PP->new->canonical->allow_nonref->encode($_->{$name}));
}
is(sent({ best_of => 2, n => 2 }, '/v1/completions')->{endpoint},
   'completion', 'accepted: best_of as n');

# Refused.

$n = $t->count('submit');

my @both = (
    [ model => 5 ], [ stream => 'true' ], [ stream => 1 ],
    [ stream_options => 1, { include_usage => $true } ],
    [ temperature => -0.1, 2.1, '1', $true, [] ],
    [ top_p => 0, -1, 1.01, '0.5' ], [ min_p => -0.1, 1.1 ],
    [ top_k => -2, 1.5, 'x', 2147483648 ],
    [ presence_penalty => -2.1, 2.1 ], [ frequency_penalty => -3, 'x' ],
    [ repetition_penalty => 0, -1, 101 ],
    [ n => 0, -1, 17, 1.5, '1' ], [ seed => 1.5, 'x', {} ],
    [ max_tokens => -1, 1.5, '5', 4294967296, 1e20, {} ],
    [ max_completion_tokens => -1, 'x' ],
    [ stop => 5, '', [ 5 ], [ '' ], 'x' x 257, { a => 1 },
              [ map { "s$_" } 1 .. 17 ] ],
    [ logit_bias => [], 5, { x => 1 }, { -1 => 1 }, { '1.5' => 1 },
                    { 1 => 'x' }, { 1 => 101 }, { 1 => -101 }, { 1 => undef },
                    { '' => 1 }, { 9999999999 => 1 },
                    { map { $_ => 1 } 1 .. 1025 } ],
    [ user => 5, 'x' x 513 ], [ ignore_eos => 'x' ],
    [ tools => [ { type => 'function' } ], 'x', { a => 1 } ],
    [ functions => [ { name => 'f' } ] ],
    [ function_call => { name => 'f' } ],
    [ tool_choice => 'required', { type => 'function' } ],
    [ response_format => { type => 'json_object' }, { type => 'json_schema' },
                         'text', {} ],
    [ suffix => 'x' ], [ audio => { voice => 'x' } ],
    [ modalities => [ 'text', 'audio' ], 'text' ],
    [ prediction => { type => 'content' } ],
    [ web_search_options => { a => 1 } ],
);
my @chat = (
    [ messages => 'x', [], {}, $null, 5 ],
    [ logprobs => 1, 'x' ], [ top_logprobs => 1 ],
    [ max_tokens => 0 ], [ max_completion_tokens => 0 ],
    [ thinking => 'enabled', {}, { type => 'x' }, { type => $null } ],
    [ reasoning_effort => 5 ],
);
my @text = (
    [ prompt => 5, {}, [], [ [] ], [ 'a', 5 ], [ 1, 'a' ], [ -1 ], [ 1.5 ],
                [ 2147483648 ], [ $true ], [ [ 1, 'x' ] ], [ {} ], $null,
                [ map { 'x' } 1 .. 513 ] ],
    [ max_tokens => 0 ], [ logprobs => 21, -1, $true, 1.5 ], [ echo => 1 ],
    [ best_of => 2, 0, 17 ],
);

sub refused {
    my ($uri, $param, $body, $what) = @_;
    my $r = send_one($uri, $body);
    $t->error_ok($r, 400, "$uri: $what", param => $param);
}

my $show = JSON::PP->new->canonical->allow_nonref;

for my $set ([ '/v1/chat/completions', @both, @chat ],
             [ '/v1/completions', @both, @text ])
{
    my ($uri, @cases) = @$set;

    for my $case (@cases) {
        my ($name, @values) = @$case;
        for my $v (@values) {
            my $what = substr $show->encode($v), 0, 40;
            refused($uri, $name, body($uri, { $name => $v }), "$name $what");
        }
    }
}

# Messages, part by part.

for my $case (
    [ 'messages[0]' => 'x' ], [ 'messages[0]' => [] ],
    [ 'messages[0].role' => { content => 'x' } ],
    [ 'messages[0].role' => { role => 'robot', content => 'x' } ],
    [ 'messages[0].role' => { role => 5, content => 'x' } ],
    [ 'messages[0].role' => { role => 'tool', content => 'x' } ],
    [ 'messages[0].role' => { role => 'User', content => 'x' } ],
    [ 'messages[0].content' => { role => 'user' } ],
    [ 'messages[0].content' => { role => 'user', content => $null } ],
    [ 'messages[0].content' => { role => 'user', content => 5 } ],
    [ 'messages[0].content' => { role => 'user', content => [] } ],
    [ 'messages[0].content[0]' => { role => 'user', content => [ 'x' ] } ],
    [ 'messages[0].content[0]' => { role => 'user', content => [ {} ] } ],
    [ 'messages[0].content[1]' => { role => 'user', content => [
        { type => 'text', text => 'x' },
        { type => 'image_url', image_url => { url => 'data:' } } ] } ],
    [ 'messages[0].content[0]' => { role => 'user', content => [
        { type => 'input_audio', input_audio => {} } ] } ],
    [ 'messages[0].content[0]' => { role => 'user', content => [
        { type => 'text', text => 5 } ] } ],
    [ 'messages[0].tool_calls' => { role => 'assistant', content => 'x',
        tool_calls => [ { id => 'x' } ] } ],
    [ 'messages[0].prefix' => { role => 'assistant', content => 'x',
        prefix => $true } ],
    [ 'messages[0].function_call' => { role => 'assistant', content => 'x',
        function_call => { name => 'x' } } ],
    [ 'messages[0].audio' => { role => 'assistant', content => 'x',
        audio => { id => 'x' } } ],
) {
    refused('/v1/chat/completions', $case->[0],
            { messages => [ $case->[1] ] }, $show->encode($case->[1]));
}
refused('/v1/chat/completions', 'messages[1].content',
        { messages => [ { role => 'user', content => 'x' },
                        { role => 'user' } ] }, 'the second message');

refused('/v1/chat/completions', 'messages', {}, 'no messages');
refused('/v1/completions', 'prompt', {}, 'no prompt');
refused('/v1/chat/completions', 'stream_options',
        body('/chat', { stream => $true, stream_options => 5 }),
        'stream_options 5');
refused('/v1/chat/completions', 'stream_options.include_usage',
        body('/chat', { stream => $true,
                        stream_options => { include_usage => 5 } }),
        'include_usage 5');
refused('/v1/completions', 'seed', qq({"prompt":"x","seed":$_}), "seed $_")
    for qw/ 9223372036854775808 -9223372036854775809 1e3 1.0 /,
        '9' x 40;
refused('/v1/completions', 'prompt', { prompt => [ map { 'x' } 1 .. 33 ],
                                       n => 16 }, 'too many choices');

my $r = send_one('/v1/completions', { prompt => 'x', model => 'absent' });
$t->error_ok($r, 404, 'model: unknown', code => 'model_not_found',
             param => 'model');
$r = send_one('/v1/completions', { prompt => 'x', model => 'Tiny' });
$t->error_ok($r, 404, 'model: names have case');
$r = send_one('/v1/completions', { prompt => 'x', model => '' });
$t->error_ok($r, 404, 'model: empty');

for (qw/ tools functions suffix audio prediction response_format /) {
    my $v = $_ eq 'response_format' ? { type => 'json_object' }
          : $_ eq 'suffix' ? 'x' : [ 'x' ];
    $r = send_one('/v1/completions', { prompt => 'x', $_ => $v });
    $t->error_ok($r, 400, "not implemented: $_",
                 code => 'unsupported_parameter', param => $_);
    like($r->{json}{error}{message}, qr/'\Q$_\E'/, "not implemented: $_ named");
}

is($t->count('submit'), $n, 'nothing of all that reached the engine');

# What the engine refuses.

for my $case ([ 'invalid', 400, undef ], [ 'length', 400,
              'context_length_exceeded' ], [ 'template', 400,
              'no_chat_template' ], [ 'model', 404, 'model_not_found' ],
              [ 'queue', 429, 'queue_full' ], [ 'timeout', 503, 'timeout' ],
              [ 'shutdown', 503, 'engine_unavailable' ],
              [ 'internal', 500, 'internal_error' ])
{
    my ($error, $status, $code) = @$case;
    for my $stream ($false, $true) {
        $r = send_one('/v1/chat/completions', { stream => $stream,
            messages => [ { role => 'user', content =>
                "script: error=$error param=max_tokens message=why%20%C3%A9"
                . ' retry=7' } ] });
        $t->error_ok($r, $status, "engine: $error", code => $code,
                     param => 'max_tokens', message => "why \x{e9}");
        is($r->{headers}{'retry-after'},
           $status == 429 || $status == 503 ? 7 : undef,
           "engine: $error, Retry-After");
    }
}
$r = send_one('/v1/completions', { prompt => 'script: error=queue retry=900' });
is($r->{headers}{'retry-after'}, 120, 'Retry-After: never above 120');

$t->done();
done_testing();
