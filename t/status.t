#!/usr/bin/perl

# llm_status: the JSON, who gets which form of it, and the stream: it follows
# what happens, outlives nothing and holds nobody up.

use strict;
use warnings;

use Digest::SHA qw/ sha256_base64 /;
use FindBin;
use lib "$FindBin::Bin/lib";

use JSON::PP;
use Test::LLM;
use Test::More;
use Time::HiRes qw/ sleep /;

my $true = JSON::PP::true();
my $t = Test::LLM->new();
my $chat = '/v1/chat/completions';

sub status { $t->request('GET', '/status')->{json} }

sub chat {
    my ($script, %opt) = @_;
    return $t->request('POST', $chat, { messages => [
        { role => 'user', content => "script: $script" } ], %opt });
}

# The first status of which `check` is true, given it and its first model.

sub until_ok {
    my ($check, $name) = @_;
    my $s;

    ok($t->wait_for(sub {
        $s = status();
        return $check->($s, $s->{models}[0] // {});
    }), $name);
    return $s;
}

# Bad configurations.

for ([ 'location / { llm_status on; }', 'invalid parameter "on"', 'argument' ],
     (map { [ "location / { llm_status cost=$_; }",
              qq(invalid parameter "cost=$_"), "cost=$_" ] }
      qw/ x -1 1.5x 0.1234567891 1000000001 /),
     [ 'location / { llm_status cost=; }', 'invalid parameter "cost="',
       'no cost' ],
     [ 'location / { llm_status cost=1 cost=2; }',
       'invalid number of arguments in "llm_status" directive', 'two' ],
     [ 'location / { llm_status; llm_status; }',
       '"llm_status" directive is duplicate', 'twice' ],
     [ 'llm_status;', '"llm_status" directive is not allowed here',
       'server' ],
     [ 'location / { llm_status; } } llm_prefix_zone zone=llm_metrics:1m; '
       . 'server {', 'llm_metrics', 'a zone of that name' ])
{
    my ($text, $want, $what) = @$_;
    my ($ok, $out) = $t->config_test("server { listen %%LISTEN%%; $text }");
    ok(!$ok && index($out, $want) >= 0, "bad: $what") or diag($out);
}

my $conf = sprintf(<<'CONF', $t->tls());
    llm_engine e unix:%%%%SOCKET%%%%;
    llm_engine gone unix:%%%%DIR%%%%/run/none.sock;
    llm_prefix_zone zone=p:1m;
    gzip on;
    gzip_types text/event-stream application/json;

    server {
        listen %%%%LISTEN%%%%;
        listen %%%%LISTEN:https%%%% ssl http2;
        listen %%%%LISTEN:slow%%%% sndbuf=4k;
        send_timeout 2s;
        %s

        location / { llm_pass e; llm_route prefix=p; }
        location = /status { llm_status; }
        location = /cost { llm_status cost=0.5; }
        location /paid/ { llm_price hit=1 miss=2 output=4; llm_pass e; }
        location /dir/ { llm_status; location /dir/in/ { } }
        location /off { llm_status; deny all; }
        location /ssi { ssi on; default_type text/html;
                        alias %%%%DIR%%%%/tmp/page; }
    }
CONF

$t->write_file('tmp/page', '<!--# include virtual="/status" -->');
$t->engine('scripted', '--ranks', 2, '--model', 'org/ti"ny',
           '--speculate', 2);
$t->nginx($conf, workers => 2);
$t->wait_for(sub { (status()->{engines}[0]{lanes} // 0) == 2 });
$t->wait_for(sub { !grep { !status()->{engines}[0]{up} } 1 .. 4 });

# At first.

my $r = $t->request('GET', '/status');
my $s = $r->{json};

is($r->{status}, 200, 'status');
is($r->{headers}{'content-type'}, 'application/json', 'type');
is($r->{headers}{'cache-control'}, 'no-store', 'not stored');
ok(abs($s->{time} - time()) < 60, 'the time');
is_deeply($s->{models}, [], 'no models yet');
is_deeply($s->{engines}[1], { name => 'gone', up => JSON::PP::false() },
          'an engine that is gone');

my $e = $s->{engines}[0];
is($e->{model}, 'org/ti"ny', 'model');
is($e->{fingerprint}, '000000005c81b7ed', 'fingerprint');
is($e->{max_context}, 65536, 'context');
is("$e->{running} $e->{waiting} $e->{requests} $e->{tokens} $e->{lanes}",
   '0 0 0 0 2', 'engine');
cmp_ok($e->{heartbeat_age}, '<', 5, 'heartbeat');
is_deeply($e->{speculation}, { max => 2, depth => 2, drafts => 0,
    draft_tokens => 0, accepted_tokens => 0 }, 'speculation');
is_deeply($e->{ranks}, [ ({ running => 0, kv_blocks => 1024,
    kv_free_blocks => 1024, tokens_per_second => 0, expert_load => 1,
    expert_moves => 0 }) x 2 ], 'ranks');

# What requests add.

chat('tokens=5 reasoning=2 delay=2 first=30 prefill=60 prompt_tokens=9 '
     . 'cached=4') for 1 .. 10;
chat('tokens=50', max_tokens => 5);
chat('error=queue');
$s = until_ok(sub { ($_[1]{requests} // 0) == 12 }, 'requests');

my $m = $s->{models}[0];
is($m->{model}, 'org/ti"ny', 'a model');
is_deeply($m->{status}, { 200 => 11, 429 => 1 }, 'by status');
is_deeply($m->{finish_reason}, { stop => 10, length => 1, error => 1 },
          'by reason');
is($m->{completion_tokens}, 75, 'tokens');
is($m->{reasoning_tokens}, 20, 'reasoning');
is($m->{cached_tokens}, 40, 'cached');
is_deeply($s->{engines}[0]{speculation}, { max => 2, depth => 2,
    drafts => 75, draft_tokens => 150, accepted_tokens => 75 }, 'guesses');
is($m->{routed}{hit} + $m->{routed}{moved} + $m->{routed}{none}, 11,
   'routed');

for my $what (qw/ ttft tpot queue duration /) {
    my $n = 0;
    $n += $_ for @{ $m->{$what}{buckets} };
    is(scalar @{ $m->{$what}{buckets} }, 1 + @{ $s->{bounds}{$what} },
       "$what: a bucket for each bound, and one above");
    is($n, 11, "$what: values");
    ok($m->{$what}{p50} <= $m->{$what}{p90}
       && $m->{$what}{p90} <= $m->{$what}{p99}, "$what: in order");
}
cmp_ok($m->{ttft}{p50}, '>=', 0.07, 'ttft: the median is in its bucket');
cmp_ok($m->{queue}{p50}, '>=', 0.02, 'queue: the median is in its bucket');
cmp_ok($m->{ttft}{sum}, '>=', 0.9, 'ttft: sum');

chat('', n => 0);
$s = until_ok(sub { @{ $_[0]{models} } == 2 }, 'one whose model is not known');
is($s->{models}[1]{model}, '', 'it has no name');
is_deeply($s->{models}[1]{finish_reason}, { error => 1 }, 'it has a reason');

# The day's money, where there is some.

is_deeply($s->{today}, {}, 'no price, no money');
my $hours = time() % 86400 / 3600;
my $today = $t->request('GET', '/cost')->{json}{today};
is(join(' ', keys %$today), 'cost', 'an hour costs');
ok(abs($today->{cost} - $hours * 0.5) < 0.01, 'so many since midnight')
    or diag("$today->{cost} for $hours hours");

$t->request('POST', '/paid/v1/completions', {
    prompt => 'script: tokens=10 prompt_tokens=30 cached=20' });
$s = until_ok(sub { defined $_[0]{today}{revenue} }, 'a price, revenue');
is($s->{today}{revenue}, 0.00008, 'revenue');
is($s->{today}{cost}, undef, 'no cost where none is said');

# Which form.

sub form {
    my ($uri, $accept, %opt) = @_;
    my $c = $t->connect();
    $t->send_request($c, $opt{method} // 'GET', $uri, undef,
                     defined $accept ? (Accept => $accept) : ());
    my $r = $t->read_response($c, head => 1);
    close $c->{sock};
    return ($r->{headers}{'content-type'} // $r->{status}) =~ s/;.*//r;
}

for ([ '/status', undef, 'application/json' ],
     [ '/status', '*/*', 'application/json' ],
     [ '/status', 'application/json', 'application/json' ],
     [ '/status', 'text/html,application/xhtml+xml,*/*;q=0.8', 'text/html' ],
     [ '/status', 'Text/Event-Stream', 'text/event-stream' ],
     [ '/status?json', 'text/html', 'application/json' ],
     [ '/status?html', undef, 'text/html' ],
     [ '/status?stream', 'text/html', 'text/event-stream' ],
     [ '/status?other', undef, 'application/json' ],
     [ '/dir/', undef, 'application/json' ],
     [ '/dir/x?html', undef, 'text/html' ],
     [ '/dir/in/x', undef, 'text/html' ],
     [ '/off', 'text/html', 'text/html' ])
{
    my ($uri, $accept, $want) = @$_;
    is(form($uri, $accept), $want, "$uri for " . ($accept // 'any'));
}
is($t->request('GET', '/dir/in/x')->{status}, 404, 'a location inside');
is($t->request('GET', '/off?stream')->{status}, 403, 'denied');
is($t->request('POST', '/status', {})->{status}, 405, 'POST');
is(form('/status', undef, method => 'HEAD'), 'application/json', 'HEAD');
is($t->request('HEAD', '/status?stream')->{status}, 200, 'HEAD of a stream');
like($t->request('GET', '/ssi')->{body}, qr/^\{"time":.*\}\s*$/,
     'in a page');

# The page allows what is in it, and nothing else.

$r = $t->request('GET', '/status?html');
my $csp = $r->{headers}{'content-security-policy'} // '';

for my $what (qw/ style script /) {
    my @all = $r->{body} =~ /<$what\b[^>]*>(.*?)<\/$what>/gs;
    is(scalar @all, 1, "page: one $what");
    my $hash = sha256_base64($all[0]);
    $hash .= '=' while length($hash) % 4;
    like($csp, qr/$what-src 'sha256-\Q$hash\E'(?:;|$)/, "page: its $what");
}
like($csp, qr/default-src 'none'/, 'page: nothing else');
like($csp, qr/connect-src 'self'/, 'page: connects to its server');
like($csp, qr/frame-ancestors 'none'/, 'page: in no frame');
is($r->{headers}{'cache-control'}, 'no-store', 'page: not stored');
is($r->{headers}{'x-content-type-options'}, 'nosniff', 'page: a page only');
is(join(' ', grep { !m{^http://www\.w3\.org/} }
        $r->{body} =~ m{(?:https?:)?//[a-z][^\s"')]*\.[a-z]+[^\s"')]*}g), '',
   'page: names no other server');
unlike($r->{body} =~ s/<script>.*?<\/script>//sr,
       qr/\son[a-z]+\s*=|\sstyle\s*=|javascript:/i, 'page: nothing inline');
unlike($r->{body}, qr/innerHTML|outerHTML|insertAdjacentHTML|\beval\b/,
       'page: makes no HTML of data');

# The stream.

sub stream {
    my ($c, $n, %opt) = @_;
    my @events;
    my $r = $t->read_response($c, %opt, on_data => sub {
        @events = grep { ref eq 'HASH' } $t->sse($_[1]{body}
                                                 =~ s/[^\n]+\z//r);
        return $n && @events >= $n ? 'stop' : '';
    });
    $r->{events} = \@events;
    return $r;
}

my $c = $t->connect();
my $submits = $t->count('submit');
$t->send_request($c, 'GET', '/status?stream');
my $first = stream($c, 1);
is($first->{headers}{'x-accel-buffering'}, 'no', 'stream: not buffered');
is($first->{headers}{'cache-control'}, 'no-store', 'stream: not stored');
like($first->{body}, 
     qr/^retry: \d+\n\nevent: history\ndata: \[.*\]\n\ndata: \{.*\}\n\n$/,
     'stream: the first object at once');
is_deeply([ map { $_->{requests} } @{ $first->{events}[0]{models} } ],
          [ 13, 1 ], 'stream: what is in it');

# A client that does not read: nobody waits for it, and it ends after
# send_timeout, which is looked at below.

my $slow = { buf => '' };
socket $slow->{sock}, Socket::PF_INET(), Socket::SOCK_STREAM(), 0;
setsockopt $slow->{sock}, Socket::SOL_SOCKET(), Socket::SO_RCVBUF(), 2048;
connect $slow->{sock}, Socket::pack_sockaddr_in(
    $t->port('slow'), Socket::inet_aton('127.0.0.1')) or die "connect: $!";
$t->send_request($slow, 'GET', '/dir/slow?stream');

my $busy = $t->connect();
$t->send_request($busy, 'POST', $chat, { stream => $true, messages => [
    { role => 'user', content => 'script: tokens=100000 delay=10' } ] });
$t->wait_for(sub { $t->count('submit') > $submits });

# What was before: a sample a second, by one of two workers, tokens so far.

ok($t->wait_for(sub {
    my $c = $t->connect();
    $t->send_request($c, 'GET', '/status?stream');
    my $r = stream($c, 1);
    close $c->{sock};
    my ($data) = $r->{body} =~ /^event: history\ndata: (.*)$/m;
    my @h = @{ $t->decode($data) };
    my @last = @{ $h[-1] // [] };
    return @h >= 3 && $last[1] > $h[0][1] && $last[2] >= 90
        && $last[3] == 2 && "@{ $last[4] }" eq '1000 1000'
        && !grep { $h[$_][0] <= $h[$_ - 1][0]
                   || $h[$_][1] < $h[$_ - 1][1] } 1 .. $#h;
}), 'history: in order, and as the counters');

$c = $t->connect();
$t->send_request($c, 'GET', '/status?stream');
my $r3 = stream($c, 4);
my @tokens = map { $_->{engines}[0]{tokens} } @{ $r3->{events} };
ok(@tokens >= 4 && $tokens[-1] > $tokens[0], 'stream: follows tokens');
is($r3->{events}[-1]{engines}[0]{running}, 1, 'stream: running');
close $c->{sock};
close $busy->{sock};

# HTTP/2; gzip has its say as for any answer.

my ($h) = $t->h2(uri => '/status', method => 'GET');
is($h->{status}, 200, 'HTTP/2') or diag(explain $h);
$c = $t->connect();
$t->send_request($c, 'GET', '/status?json', undef,
                 'Accept-Encoding' => 'gzip');
is($t->read_response($c)->{headers}{'content-encoding'}, 'gzip', 'gzip');

# Many come and go.

my @many = map { $t->connect() } 1 .. 50;
$t->send_request($_, 'GET', '/status?stream') for @many;
is(scalar(grep { @{ stream($_, 1)->{events} } >= 1 } @many), 50,
   'many streams');
close $_->{sock} for @many;
ok($t->wait_for(sub {
    (() = $t->read_file('logs/access.log')
          =~ m{"GET /status\?stream [^"]*" (?:200|499)}g) >= 50 }),
   'many streams: ended when their clients left');

# An engine that dies, and comes back.

$t->stop('engine');
$s = until_ok(sub { !$_[0]{engines}[0]{up} }, 'the engine is gone');
is_deeply($s->{engines}[0], { name => 'e', up => JSON::PP::false() },
          'and has no more to say');
is($s->{models}[0]{requests}, 14, 'the counters have');
$t->engine('scripted', '--ranks', 3);
until_ok(sub { @{ $_[0]{engines}[0]{ranks} // [] } == 3 }, 'another one');

ok($t->wait_for(sub {
    $t->read_file('logs/access.log') =~ m{"GET /dir/slow\?stream } }, 30),
   'a client that does not read was left');
like($t->read_file('logs/error.log'),
     qr/client timed out.*while sending llm status/, 'and why');

# Reload and end: streams are ended in good order, nobody waits for them.

sub connected {
    my $port = sprintf ':%04X', $t->port($_[0]);

    return $t->read_file('/proc/net/tcp') =~ /^ *\d+: \S+$port \S+ 01 /m;
}

for my $signal (qw/ HUP QUIT /) {
    my %old = map { $_ => 1 } $t->workers();
    my ($sent, $h2) = (0);

    $c = $t->connect();
    $t->send_request($c, 'GET', '/status?stream');
    $h2 = $t->h2_start(uri => '/status?stream', method => 'GET',
                        abort_after => 30);
    my $both = 0;
    $r = $t->read_response($c, on_data => sub {
        $both += () = $_[0] =~ /^data: /mg if connected('https');
        kill $signal, $t->pid('nginx') if $both >= 3 && !$sent++;
        return '';
    });
    ok($sent && !$r->{error} && !$r->{stopped}, "$signal ends a stream")
        or diag($r->{error} // 'no signal');
    like($r->{body}, qr/\}\n\n\z/, "$signal: after a whole object");
    ($h) = $t->h2_finish($h2);
    ok($h->{ended} && !$h->{error}, "$signal ends one over HTTP/2 too");
    like($h->{text} // '', qr/^retry: \d+\n\n.*\ndata: .*\}\n\n\z/s,
         "$signal: which had objects");

    next if $signal eq 'QUIT';

    $t->wait_for(sub { !grep { $old{$_} } $t->workers() }, 30);
    is(scalar(grep { $old{$_} } $t->workers()), 0, 'the old workers ended');
    is(status()->{models}[0]{requests}, 14, 'the counters were kept');
}

$t->done(allow => qr/\[emerg\]/);
done_testing();
