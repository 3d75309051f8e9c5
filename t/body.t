#!/usr/bin/perl

# Request bodies: JSON as strict as the RFC where cJSON is not, and bytes that
# arrive whole however they travel: in one piece, in a file, in chunks, slowly,
# by the megabyte.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::Bin/lib";

use JSON::PP;
use Test::LLM;
use Test::More;
use Time::HiRes qw/ sleep time /;

my $t = Test::LLM->new();

$t->engine('scripted', '--context', 100000000);
$t->nginx(sprintf(<<'CONF', $t->tls()));
    llm_engine e unix:%%%%SOCKET%%%% lane=1m;
    keepalive_requests 10000;
    client_max_body_size 32m;

    server {
        listen %%%%LISTEN%%%%;
        listen %%%%LISTEN:https%%%% ssl http2;
        %s

        location / { llm_pass e; client_body_buffer_size 64k; }
        location /tiny/ { llm_pass e; client_body_buffer_size 1k; }
        location /single/ {
            llm_pass e;
            client_body_buffer_size 1k;
            client_body_in_single_buffer on;
        }
        location /file/ { llm_pass e; client_body_in_file_only clean; }
        location /kept/ { llm_pass e; client_body_in_file_only on; }
        location /big/ { llm_pass e; client_body_buffer_size 32m; }
        location /small/ { llm_pass e; client_max_body_size 1k; }
        location /huge/ { llm_pass e; client_max_body_size 0; }
        location /slow/ { llm_pass e; client_body_timeout 1s; }
    }
CONF

my $uri = '/v1/completions';
my $c = $t->connect();

sub raw {
    my ($text, $uri2, %h) = @_;
    my $r = $t->request('POST', $uri2 // $uri, $text, conn => $c,
                        headers => \%h);
    $c = $t->connect() if ($r->{headers}{connection} // 'close') eq 'close';
    return $r;
}

# cJSON would pass these.

my $n = $t->count('submit');
my $chat = '/v1/chat/completions';

for my $case (
    [ 'invalid UTF-8' => "{\"prompt\":\"\xff\"}" ],
    [ 'half a character' => "{\"prompt\":\"\xc3\"}" ],
    [ 'an overlong form' => "{\"prompt\":\"\xc0\xaf\"}" ],
    [ 'an encoded surrogate' => "{\"prompt\":\"\xed\xa0\x80\"}" ],
    [ 'beyond U+10FFFF' => "{\"prompt\":\"\xf4\x90\x80\x80\"}" ],
    [ 'invalid UTF-8 in a name' => "{\"prompt\":\"x\",\"\xfe\":1}" ],
    [ 'garbage after it' => '{"prompt":"x"}x' ],
    [ 'a second value' => '{"prompt":"x"} {}' ],
    [ 'a zero byte after it' => "{\"prompt\":\"x\"}\0" ],
    [ 'a zero byte within' => "{\"prompt\":\"a\0b\"}" ],
    [ 'a raw newline' => "{\"prompt\":\"a\nb\"}" ],
    [ 'a raw tab' => "{\"prompt\":\"a\tb\"}" ],
    [ 'a raw escape' => "{\"prompt\":\"a\x1bb\"}" ],
    [ 'a leading zero' => '{"prompt":"x","n":01}' ],
    [ 'a number too large' => '{"prompt":"x","temperature":1e999}' ],
    [ 'a number too small' => '{"prompt":"x","temperature":-1e999}' ],
    [ 'a point without digits' => '{"prompt":"x","temperature":1.}' ],
    [ 'digits without a whole' => '{"prompt":"x","temperature":.5}' ],
    [ 'a plus' => '{"prompt":"x","temperature":+1}' ],
    [ 'hexadecimal' => '{"prompt":"x","n":0x1}' ],
    [ 'an empty exponent' => '{"prompt":"x","temperature":1e}' ],
    [ 'minus alone' => '{"prompt":"x","temperature":-}' ],
    [ 'NaN' => '{"prompt":"x","temperature":NaN}' ],
    [ 'Infinity' => '{"prompt":"x","temperature":Infinity}' ],
    [ '\u0000' => '{"prompt":"a\u0000b"}' ],
    [ '\u0000 in a name' => '{"prompt\u0000":"a","prompt":"b"}' ],
    [ 'a lone high surrogate' => '{"prompt":"\ud83d"}' ],
    [ 'a lone low surrogate' => '{"prompt":"\ude00"}' ],
    [ 'two high surrogates' => '{"prompt":"\ud83d\ud83d"}' ],
    [ 'half a pair' => '{"prompt":"\ud83d\u0041"}' ],
    [ 'a short \u' => '{"prompt":"\u12"}' ],
    [ 'a wrong \u' => '{"prompt":"\u12g4"}' ],
    [ 'an unknown escape' => '{"prompt":"\x41"}' ],
    [ 'an open escape' => '{"prompt":"\\' ],
    [ 'single quotes' => "{'prompt':'x'}" ],
    [ 'no quotes' => '{prompt:"x"}' ],
    [ 'a comma too many' => '{"prompt":"x",}' ],
    [ 'a comma in a list' => '{"prompt":["x",]}' ],
    [ 'no comma' => '{"prompt":"x" "n":1}' ],
    [ 'no colon' => '{"prompt" "x"}' ],
    [ 'wrong brackets' => '{"prompt":["x"}}' ],
    [ 'no end' => '{"prompt":"x"' ],
    [ 'an open string' => '{"prompt":"x' ],
    [ 'a comment' => '{"prompt":"x"/**/}' ],
    [ 'True' => '{"prompt":"x","stream":True}' ],
    [ 'a byte order mark' => "\xef\xbb\xbf{\"prompt\":\"x\"}" ],
    [ 'a form feed' => "\x0c{\"prompt\":\"x\"}" ],
    [ '65 levels' => '{"prompt":"x","a":' . '[' x 64 . ']' x 64 . '}' ],
    [ '100,000 levels' => '[' x 100000 ],
    [ '100,000 objects' => '{"a":' x 100000 ],
    [ 'a number of 64 digits' => '{"prompt":"x","a":' . '1' x 64 . '}' ],
    [ 'nothing' => '' ], [ 'space' => " \r\n\t" ],
    [ 'null' => 'null' ], [ 'a list' => '[{"prompt":"x"}]' ],
    [ 'a string' => '"x"' ], [ 'a number' => '5' ],
) {
    my ($what, $text) = @$case;
    $t->error_ok(raw($text), 400, "refused: $what", param => undef);
}

# Names have case, and are given once.

for my $case (
    [ $uri, 'Prompt', '{"Prompt":"x"}', 'prompt' ],
    [ $uri, 'PROMPT', '{"PROMPT":"x"}', 'prompt' ],
    [ $chat, 'Messages', '{"Messages":[{"role":"user","content":"x"}]}',
      'messages' ],
    [ $chat, 'Role', '{"messages":[{"Role":"user","content":"x"}]}',
      'messages[0].role' ],
    [ $chat, 'CONTENT', '{"messages":[{"role":"user","CONTENT":"x"}]}',
      'messages[0].content' ],
    [ $uri, 'prompt twice', '{"prompt":"a","prompt":"b"}', 'prompt' ],
    [ $uri, 'prompt twice, escaped', '{"prompt":"a","\u0070rompt":"b"}',
      'prompt' ],
    [ $uri, 'n twice', '{"n":1,"prompt":"a","n":1}', 'n' ],
    [ $chat, 'role twice',
      '{"messages":[{"role":"user","role":"system","content":"x"}]}',
      'messages[0].role' ],
    [ $uri, 'stream twice, one null',
      '{"prompt":"a","stream":null,"stream":true}', 'stream' ],
) {
    my ($to, $what, $text, $param) = @$case;
    $t->error_ok(raw($text, $to), 400, "names: $what", param => $param);
}

is($t->count('submit'), $n, 'nothing of all that reached the engine');

# What is right passes.

sub text_is {
    my ($text, $want, $what, $to) = @_;
    my $n = $t->count('submit');
    my $r = raw($text, $to);
    my @s = $t->submits();

    diag($r->{body}) if $r->{status} != 200;
    is(@s == $n ? 'nothing' : $s[$n]{text}, $want, "accepted: $what");
}

text_is("\r\n\t {\"prompt\" : \"x\"} \n", 'x', 'white space around');
text_is('{"prompt":"\ud83d\ude00\u00f6\/\"\\\\\b\f\n\r\t\u007f\u0001"}',
        "\xf0\x9f\x98\x80\xc3\xb6/\"\\\b\f\n\r\t\x7f\x01", 'every escape');
text_is("{\"prompt\":\"\xf4\x8f\xbf\xbf\xef\xbf\xbe\x7f\"}",
        "\xf4\x8f\xbf\xbf\xef\xbf\xbe\x7f", 'odd characters');
text_is('{"Prompt":"a","prompt":"b","PROMPT":"c"}', 'b', 'names with case');
text_is('{"x":1,"x":2,"prompt":"a"}', 'a', 'an unknown name twice');
text_is('{"prompt":"a","a":' . '[' x 63 . ']' x 63 . '}', 'a', '64 levels');
text_is('{"prompt":"a","a":' . '1' x 63 . '}', 'a', 'a number of 63 digits');
text_is('{"prompt":"a","a":1e-999}', 'a', 'a number next to 0');
text_is('{"prompt":"a","":{},"\u00f6":[]}', 'a', 'empty and other names');
text_is('{"prompt":"a","temperature":-0.0}', 'a', 'minus zero');

# No matter what it says it is.

for my $type ('application/json; charset=utf-8', 'text/plain',
              'application/x-www-form-urlencoded', undef)
{
    my $r = raw('{"prompt":"a b"}', undef, 'Content-Type' => $type);
    is($r->{json}{choices}[0]{text}, 'a b', 'type ' . ($type // 'not given'));
}

# Every way through nginx.

my $word = '';
$word .= sprintf '%x ', $_ * 2654435761 for 1 .. 3000;
my $long = '{"prompt":"' . $word . '"}';
my $hash = $t->fnv($word);

sub whole {
    my ($r, $what, $want, $size) = @_;
    my ($s) = reverse $t->submits();
    is(join(' ', $r->{status}, $s->{'text.size'}, $s->{'text.hash'}),
       join(' ', 200, $size // length $word, $want // $hash), "whole: $what");
}

for my $way (qw/ v1 tiny single file kept big huge /) {
    whole(raw($long, "/$way/completions"), $way);
}
is(scalar(() = glob $t->dir() . '/tmp/body/*'), 1,
   'file_only on keeps its file');
unlink glob $t->dir() . '/tmp/body/*';

# Chunks of any size.

for my $size (1, 7, 1000, 30000) {
    my $text = $size == 1 ? '{"prompt":"a b c"}' : $long;
    my $body = '';
    $body .= sprintf "%x\r\n%s\r\n", length $_, $_
        for $text =~ /(.{1,$size})/gs;
    for my $way (qw/ v1 tiny file /) {
        my $r = raw($body . "0\r\n\r\n", "/$way/completions",
                    'Transfer-Encoding' => 'chunked');
        $size == 1 ? is($r->{json}{choices}[0]{text}, 'a b c',
                        "chunks of 1, $way")
                   : whole($r, "chunks of $size, $way");
    }
}
$t->error_ok(raw("5\r\n{\"pro\r\n0\r\n\r\n", undef,
                 'Transfer-Encoding' => 'chunked'), 400, 'chunks, cut JSON');
$t->error_ok(raw("0\r\n\r\n", undef, 'Transfer-Encoding' => 'chunked'), 400,
             'chunks, none');
$t->error_ok(raw("zz\r\n\r\n", undef, 'Transfer-Encoding' => 'chunked'), 400,
             'chunks, malformed');

# Megabytes: more than a record, more than the ring.

my $block = join ' ', map { sprintf '%07d', $_ * 7919 % 9999991 } 1 .. 128;
for my $mb (1, 8) {
    my $prompt = ($block . ' ') x ($mb * 1024);
    my $want = $t->fnv($prompt);
    my $body = '{"max_tokens":1,"prompt":"' . $prompt . '"}';

    whole(raw($body, "/$_/completions"), "$mb MB, $_", $want, length $prompt)
        for qw/ v1 big /;
    my ($h) = $t->h2(uri => '/v1/completions', body => {
        max_tokens => 1, prompt => $prompt }) if $mb == 1;
    whole($h, "$mb MB, HTTP/2", $want, length $prompt) if $h;
}

# Several at once, through a ring that holds none of them.

my @conns = map { $t->connect() } 1 .. 8;
my $prompt = ($block . ' ') x 2048;
my $want = $t->fnv($prompt);
my $before = $t->count('submit');
$t->send_request($_, 'POST', '/big/completions', {
    max_tokens => 1, prompt => $prompt }) for @conns;
my @r = map { $t->read_response($_, limit => 60) } @conns;
is(scalar(grep { $_->{status} == 200 } @r), 8, 'eight of 2 MB at once');
is(scalar(grep { $_->{'text.hash'} eq $want }
          ($t->submits())[$before .. $before + 7]), 8, '... all whole');

# Too large.

for my $chunked (0, 1) {
    my $text = '{"prompt":"' . 'x' x 2000 . '"}';
    $text = sprintf "%x\r\n%s\r\n0\r\n\r\n", length $text, $text if $chunked;
    my $r = raw($text, '/small/completions',
                $chunked ? ('Transfer-Encoding' => 'chunked') : ());
    $t->error_ok($r, 413, "413, " . ($chunked ? 'chunked' : 'plain'),
                 code => 'request_too_large');
}
my ($h) = $t->h2(uri => '/small/completions', body => { prompt => 'x' x 2000 });
$t->error_ok($h, 413, '413, HTTP/2');

# More than the channel takes: 64 MiB are refused, nobody else is hurt.

my $r = raw('{"prompt":"' . 'x ' x (33 << 20) . '"}', '/huge/completions');
$t->error_ok($r, 413, '66 MB', code => 'request_too_large');

# A value of two bytes takes much more memory than that: there is a bound.

for my $n (262_100, 300_000) {
    my $r = raw('{"prompt":"a","x":[' . join(',', ('0') x $n) . ']}',
                '/v1/completions');
    $n < 262_144 ? is($r->{status}, 200, "$n values")
                 : $t->error_ok($r, 400, "$n values");
}

# Slowly.

$c = $t->connect();
my $text = '{"prompt":"a b c"}';
$t->send_request($c, 'POST', $uri, '', 'Content-Length' => length $text,
                 'Content-Type' => 'application/json');
for (split //, $text) {
    $t->send_raw($c, $_);
    sleep 0.01;
}
is($t->read_response($c)->{json}{choices}[0]{text}, 'a b c', 'byte by byte');

$before = $t->count('submit');
$c = $t->connect();
$t->send_request($c, 'POST', '/slow/completions', '{"prompt":',
                 'Content-Length' => 100);
my $start = time();
$r = $t->read_response($c, limit => 10);
ok($r->{status} == 408 || ($r->{error} // '') eq 'closed',
   'too slowly: an end');
cmp_ok(time() - $start, '<', 5, 'too slowly: in time');
is($t->count('submit'), $before, 'too slowly: not submitted');

$c = $t->connect();
is(raw('{"prompt":"a"}')->{status}, 200, 'after all');

$t->done();
done_testing();
