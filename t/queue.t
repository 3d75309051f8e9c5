#!/usr/bin/perl

# Directives: what they refuse, how they merge, what of them reaches the
# engine; the queue's limits, keep-alives while waiting, caps, several engines,
# and nginx's ways of calling a location from another one.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::Bin/lib";

use JSON::PP;
use Test::LLM;
use Test::More;
use Time::HiRes qw/ sleep time /;

my $true = JSON::PP::true();

# Bad arguments, in `nginx -t`.

my $dry = Test::LLM->new();
my $engine = 'llm_engine e unix:run/e.sock';
my $long = 'x' x 120;

for my $case (
    [ 'llm_engine e;', qr/invalid number of arguments in "llm_engine"/ ],
    [ 'llm_engine e /run/x;', qr/invalid socket.*must be "unix:PATH"/ ],
    [ 'llm_engine e unix:;', qr/must be "unix:PATH"/ ],
    [ "llm_engine e unix:/$long;", qr/too long socket path/ ],
    [ "$engine; $engine;", qr/duplicate llm engine "e"/ ],
    [ "$engine lane=1k;", qr/invalid lane size "lane=1k"/ ],
    [ "$engine lane=x;", qr/invalid lane size/ ],
    [ "$engine lane=5g;", qr/invalid lane size/ ],
    [ "$engine resume=x;", qr/invalid time "resume=x"/ ],
    [ "$engine size=1m;", qr/invalid parameter "size=1m"/ ],
    [ "server { $engine; }", qr/"llm_engine" directive is not allowed here/ ],
    [ 'server { location / { llm_pass e; } }', qr/llm engine "e" not found/ ],
    [ 'llm_pass e;', qr/"llm_pass" directive is not allowed here/ ],
    [ 'server { llm_pass e; }', qr/"llm_pass" directive is not allowed/ ],
    [ "$engine; server { location / { llm_pass e; llm_pass e; } }",
      qr/"llm_pass" directive is duplicate/ ],
    [ "$engine; server { location / { llm_pass; } }",
      qr/invalid number of arguments/ ],
    [ 'llm_keepalive x;', qr/"llm_keepalive" directive invalid value/ ],
    [ 'llm_keepalive -1;', qr/"llm_keepalive" directive invalid value/ ],
    [ 'llm_keepalive 1s; llm_keepalive 1s;', qr/is duplicate/ ],
    [ 'llm_queue;', qr/invalid number of arguments/ ],
    [ 'llm_queue max=0;', qr/invalid parameter "max=0"/ ],
    [ 'llm_queue max=-1;', qr/invalid parameter "max=-1"/ ],
    [ 'llm_queue max=x;', qr/invalid parameter "max=x"/ ],
    [ 'llm_queue timeout=0;', qr/invalid parameter "timeout=0"/ ],
    [ 'llm_queue timeout=x;', qr/invalid parameter "timeout=x"/ ],
    [ 'llm_queue 5;', qr/invalid parameter "5"/ ],
    [ 'llm_queue max=1; llm_queue max=2;', qr/is duplicate/ ],
    (map { my $d = $_; map { [ "$d $_;", qr/\b$d\b/ ] }
               qw/ 0 -1 x 1.5 4294967295 99999999999999999999 / }
     qw/ llm_max_tokens llm_max_context /),
) {
    my ($conf, $want) = @$case;
    my ($ok, $out) = $dry->config_test($conf);
    ok(!$ok && $out =~ $want && $out =~ /nginx\.conf:\d+/,
       "refused: " . substr $conf, 0, 60) or diag($out);
}

my ($ok, $out) = $dry->config_test(<<'CONF');
    llm_keepalive 0;
    llm_queue max=1;
    llm_max_tokens 4294967294;
    llm_max_context 1;
    server {
        llm_queue timeout=1500ms max=2147483647;
        location / { llm_pass late; llm_keepalive 1d; }
        location /x/ { if ($arg_a) { llm_pass late; } limit_except GET {
            llm_pass late; } }
    }
    llm_engine late unix:run/e.sock lane=512k resume=1m;
    llm_engine other unix:/run/other.sock lane=1g resume=0;
CONF
ok($ok, 'accepted: an engine after its use, every directive') or diag($out);

# Merging and caps.

my $t = Test::LLM->new();

$t->write_file('html/index.txt', <<'SSI') if mkdir $t->dir() . '/html';
[<!--#include virtual="/v1/models" -->]
[<!--#include virtual="/v1/models/none" -->]
[<!--#include virtual="/v1/completions" -->]
SSI

$t->engine('scripted', '--slots', 100);
$t->engine('scripted', { name => 'second' }, '--model', 'second');
$t->nginx(sprintf(<<'CONF', $t->tls()));
    llm_engine e unix:%%%%SOCKET%%%%;
    llm_engine second unix:%%%%SOCKET:second%%%% lane=512k;
    llm_engine dead unix:%%%%SOCKET:dead%%%%;
    llm_queue max=77 timeout=55s;
    llm_max_tokens 1000;
    llm_max_context 5000;

    server {
        listen %%%%LISTEN%%%%;
        listen %%%%LISTEN:https%%%% ssl http2;
        %s
        root %%%%DIR%%%%/html;
        llm_max_tokens 500;

        location / { llm_pass e; }
        location /own/ {
            llm_pass e;
            llm_queue max=2;
            llm_max_tokens 5;
            llm_max_context 10;
            location /own/inner/ { llm_pass e; llm_queue timeout=300ms; }
        }
        location /keep/ { llm_pass e; llm_keepalive 200ms; }
        location /never/ { llm_pass e; llm_keepalive 0; }
        location /second/ { llm_pass second; }
        location /dead/ { llm_pass dead; }

        location /ssi/ { ssi on; ssi_types *; alias %%%%DIR%%%%/html/; }
        location /mirror/ { mirror /second/v1/completions; llm_pass e; }
        location = /rewrite { rewrite ^ /second/v1/completions last; }
        location /auth/ { auth_request /second/v1/models; llm_pass e; }
        location /authno/ { auth_request /second/v1/none; llm_pass e; }
        location /add/ {
            add_before_body /second/v1/models;
            add_after_body /second/v1/models;
            addition_types *;
            llm_pass e;
        }
        location /proxy/ { proxy_pass http://%%%%LISTEN%%%%/v1/; }
        location /inif/ {
            if ($request_method = POST) { llm_pass second; }
            llm_pass e;
        }
    }
    server {
        listen %%%%LISTEN:bare%%%%;
        llm_queue timeout=7s;
        location / { llm_pass e; }
    }
CONF

sub post {
    my ($uri, $script, %opt) = @_;
    my $more = delete $opt{body} // {};
    return $t->request('POST', $uri, { prompt => "script: $script", %$more },
                       %opt);
}

sub sent {
    post(@_);
    my ($s) = reverse $t->submits();
    return join ' ', @$s{qw/ queue_max queue_timeout max_tokens max_context /};
}

my %many = (body => { max_tokens => 100000 });
is(sent('/v1/completions', 'tokens=1', %many), '77 55000 500 5000',
   'merging: from http and server');
is(sent('/v1/completions', 'tokens=1', %many, port => $t->port('bare')),
   '0 7000 1000 5000', 'merging: llm_queue is one directive');
is(sent('/own/completions', 'tokens=1', %many), '2 0 5 10',
   'merging: a location');
is(sent('/own/inner/completions', 'tokens=1', %many), '0 300 5 10',
   'merging: a nested one');
is(sent('/own/completions', 'tokens=1', body => { max_tokens => 3 }),
   '2 0 3 10', 'llm_max_tokens: below it');
is(sent('/own/completions', 'tokens=1'), '2 0 5 10',
   'llm_max_tokens: caps the default');
is(sent('/own/chat/completions', '', body => { messages => [
    { role => 'user', content => 'x' } ], max_completion_tokens => 9 }),
   '2 0 5 10', 'llm_max_tokens: of chat');

my $r = post('/own/completions', 'tokens=50', %many);
is($r->{json}{choices}[0]{finish_reason}, 'length', 'capped: length');
is($r->{json}{usage}{completion_tokens}, 5, 'capped: usage');
$r = post('/own/completions', 'tokens=5 prompt_tokens=8');
is($r->{json}{usage}{completion_tokens}, 2, 'llm_max_context: what is left');
$r = post('/own/completions', 'tokens=5 prompt_tokens=11');
$t->error_ok($r, 400, 'llm_max_context: past it',
             code => 'context_length_exceeded', param => 'prompt');

# The queue's limits answer at once.

my @c = map { $t->connect() } 1 .. 2;
my $n = $t->count('submit');
$t->send_request($_, 'POST', '/own/completions', {
    prompt => 'script: first=2500 tokens=1' }) for @c;
ok($t->wait_for(sub { $t->count('submit') == $n + 2 }), 'two wait');

my $start = time();
$r = post('/own/completions', 'first=2500 tokens=1');
$t->error_ok($r, 429, 'queue full', code => 'queue_full');
ok($r->{headers}{'retry-after'} >= 1 && $r->{headers}{'retry-after'} <= 120,
   'queue full: Retry-After');
cmp_ok(time() - $start, '<', 1, 'queue full: at once');
$r = post('/own/completions', 'first=2500', body => { stream => $true });
$t->error_ok($r, 429, 'queue full: a stream');
my ($h) = $t->h2(uri => '/own/completions',
                 body => { prompt => 'script: first=2500' });
$t->error_ok($h, 429, 'queue full: HTTP/2');

$start = time();
$r = post('/own/inner/completions', 'first=20000');
$t->error_ok($r, 503, 'queue timeout', code => 'timeout');
ok($r->{headers}{'retry-after'} >= 1, 'queue timeout: Retry-After');
cmp_ok(time() - $start, '<', 2, 'queue timeout: in time');

is($t->read_response($_)->{json}{choices}[0]{text}, 'w1',
   'those that waited are served') for @c;

# Keep-alives.

$r = post('/keep/completions', 'first=1500 tokens=2',
          body => { stream => $true });
is($r->{status}, 200, 'keep-alive: stream');
my ($comments) = $r->{body} =~ /^((?:: keep-alive\n\n)+)data: /;
ok($comments, 'keep-alive: comments come first');
cmp_ok(length($comments // '') / 14, '<=', 8, 'keep-alive: not too many');
cmp_ok($r->{header_time} - $r->{start}, '<', 1.2, 'keep-alive: in time');
is($t->sse_text($r->{body}), 'w1 w2', 'keep-alive: the text');
like($r->{body}, qr/\[DONE\]\n\n$/, 'keep-alive: the end');
unlike($r->{body}, qr/^id:/m, 'keep-alive: never an id');

$r = post('/keep/completions', 'tokens=3 prefill=500 delay=500',
          body => { stream => $true });
ok(2 <= (() = $r->{body} =~ /: keep-alive/g), 'keep-alive: between tokens');
is($t->sse_text($r->{body}), 'w1 w2 w3', 'keep-alive: text around');

$r = post('/keep/completions', 'first=900 tokens=2');
like($r->{body}, qr/^\n{2,5}\{.*\}$/s, 'keep-alive: empty lines, then JSON');
is($r->{json}{choices}[0]{text}, 'w1 w2', 'keep-alive: an answer');

$r = post('/keep/completions', 'first=700 error=queue',
          body => { stream => $true });
is($r->{status}, 200, 'keep-alive, then an error: 200 stands');
my @e = grep { ref } $t->sse($r->{body});
is($e[-1]{error}{code}, 'queue_full', 'keep-alive, then an error: an event');
unlike($r->{body}, qr/DONE/, 'keep-alive, then an error: no [DONE]');
ok(!$r->{error}, 'keep-alive, then an error: a clean end');

$r = post('/keep/completions', 'first=700 error=queue');
is($r->{status}, 200, 'keep-alive, then an error: an answer');
is($r->{json}{error}{code}, 'queue_full', 'keep-alive, then an error: a body');

$r = post('/never/completions', 'first=700 error=queue',
          body => { stream => $true });
$t->error_ok($r, 429, 'llm_keepalive 0: a status after a wait');
$r = post('/never/completions', 'first=700 tokens=1',
          body => { stream => $true });
unlike($r->{body}, qr/keep-alive/, 'llm_keepalive 0: no comments');

($h) = $t->h2(uri => '/keep/completions', body => {
    prompt => 'script: first=1500 tokens=2', stream => $true });
like($h->{text}, qr/^: keep-alive\n\n.*\[DONE\]\n\n$/s, 'keep-alive: HTTP/2');
cmp_ok($h->{first_ms}, '<', 1200, 'keep-alive: HTTP/2, in time');

my $alive = $t->connect();
$r = post('/keep/completions', 'first=500 error=queue', conn => $alive);
$r = post('/v1/completions', 'tokens=1', conn => $alive);
is($r->{json}{choices}[0]{text}, 'w1', 'keep-alive: the connection goes on');

# Several engines.

$r = $t->request('GET', '/second/v1/models');
is($r->{json}{data}[0]{id}, 'second', 'the second engine');
is($t->request('GET', '/v1/models')->{json}{data}[0]{id}, 'scripted',
   'the first engine');
$t->error_ok($t->request('GET', '/dead/models'), 503, 'a dead engine');
is(post('/second/completions', 'tokens=1')->{json}{model}, 'second',
   'an answer of the second engine');
$t->stop('second');
sleep 0.1;
$t->error_ok(post('/second/completions', 'tokens=1'), 503, 'it stops');
is(post('/v1/completions', 'tokens=1')->{status}, 200, 'the other goes on');
$t->engine('scripted', { name => 'second' }, '--model', 'second');
ok($t->wait_for(sub {
    post('/second/completions', 'tokens=1')->{status} == 200 }), 'it is back');

# From other locations.

is(post('/rewrite', 'tokens=1')->{json}{model}, 'second', 'rewrite');
is(post('/auth/completions', 'tokens=1')->{json}{choices}[0]{text}, 'w1',
   'auth_request to models');
$t->error_ok(post('/authno/completions', 'tokens=1'), 500,
             'auth_request to an error');
is(post('/inif/completions', 'tokens=1')->{json}{model}, 'second',
   'llm_pass in "if": it holds');
is($t->request('GET', '/inif/models')->{json}{data}[0]{id}, 'scripted',
   'llm_pass in "if": it does not');

$n = $t->count('submit', 'second');
$r = post('/mirror/completions', 'tokens=30 delay=5', body => {
    stream => $true, max_tokens => 50 });
like($r->{body}, qr/w30.*\[DONE\]\n\n$/s, 'mirror: the stream is whole');
ok($t->wait_for(sub { $t->count('submit', 'second') == $n + 1 }),
   'mirror: the other engine got it');
$r = post('/mirror/completions', 'tokens=3');
is($r->{json}{choices}[0]{text}, 'w1 w2 w3', 'mirror: an answer');

$r = $t->request('GET', '/ssi/index.txt');
is($r->{status}, 200, 'SSI');
my @parts = $r->{body} =~ /^\[(.*)\]$/mg;
is($t->decode($parts[0])->{data}[0]{id}, 'scripted', 'SSI: models');
ok($t->decode($parts[1])->{error}, 'SSI: an error object') or diag($r->{body});
ok($t->decode($parts[2])->{error}, 'SSI: a subrequest is a GET');

$r = post('/add/completions', 'tokens=3 delay=10', body => { stream => $true });
is($r->{status}, 200, 'addition');
like($r->{body}, qr/^\{"object":"list".*\}data: .*w3.*\[DONE\]\n\n\{.*\}$/s,
     'addition: before and after');

$r = post('/proxy/completions', 'tokens=10 delay=150', body => {
    stream => $true });
is($t->sse_text($r->{body}), join(' ', map { "w$_" } 1 .. 10),
   'through another nginx');
cmp_ok(@{ $r->{chunks} }, '>', 5, 'through another nginx: as it comes');
cmp_ok($r->{first} - $r->{start}, '<', 1, 'through another nginx: at once');
cmp_ok($r->{end} - $r->{start}, '>', 1.3, 'through another nginx: to the end');

$t->done();
done_testing();
