#!/usr/bin/perl

# The configurations that are shipped: https.conf serves over TLS, HTTP/1.1 and
# HTTP/2, and a stream's bytes leave at once; minimal.conf is one that nginx
# takes.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::Bin/lib";

use JSON::PP;
use Test::LLM;
use Test::More;

my $true = JSON::PP::true();
my $t = Test::LLM->new();
my $top = Test::LLM::top();

# https.conf, with this machine's ports and paths.

my ($crt, $key) = $t->tls()
    =~ /ssl_certificate (\S+); ssl_certificate_key (\S+);/;
my $conf = $t->read_file("$top/nginx-conf/https.conf");
my $dir = $t->dir();
my $n = 0;

$n += $conf =~ s/^ *listen \[::\].*\n//mg;
$n += $conf =~ s/listen 443 ssl/listen %%LISTEN:https%% ssl/;
$n += $conf =~ s/listen 80;/listen %%LISTEN%%;/;
$n += $conf =~ s/(ssl_certificate +)\S+;/$1$crt;/;
$n += $conf =~ s/(ssl_certificate_key +)\S+;/$1$key;/;
$n += $conf =~ s{unix:/\S+;}{unix:%%SOCKET%%;};
$n += $conf =~ s{access_log /\S+ }{access_log logs/llm.log };
is($n, 8, 'https.conf: found what to replace');

$t->engine('scripted');
$t->nginx($conf);

# Another host is sent to HTTPS.

my $r = $t->request('POST', '/v1/chat/completions?x=y', {});
is($r->{status}, 308, 'port 80: 308');
is($r->{headers}{location}, 'https://localhost/v1/chat/completions?x=y',
   'port 80: where to');

# HTTP/2: header, first event and each token as they come.

sub chat {
    my ($script) = @_;
    return { stream => $true, messages => [
        { role => 'user', content => "script: $script" } ] };
}

my ($h) = $t->h2(uri => '/v1/chat/completions',
                 body => chat('prefill=3000 tokens=5 delay=300'));
is($h->{status}, 200, 'HTTP/2');
cmp_ok($h->{header_ms}, '<', 2000, 'HTTP/2: the header leaves before a token');
cmp_ok($h->{first_ms}, '<', 2000, 'HTTP/2: and so does the first event');
cmp_ok($h->{end_ms}, '>', 3900, 'HTTP/2: tokens come later');
is($t->sse_text($h->{text}), 'w1 w2 w3 w4 w5', 'HTTP/2: all of them');
cmp_ok(@{ $h->{data_ms} }, '>=', 6, 'HTTP/2: one by one');
my @gaps = map { $h->{data_ms}[$_] - $h->{data_ms}[$_ - 1] } 2 .. 5;
is(scalar(grep { $_ > 100 && $_ < 1500 } @gaps), 4,
   "HTTP/2: each at its time (@gaps ms)");

($h) = $t->h2(uri => '/completions', body => {
    prompt => 'script: tokens=4 delay=500', stream => $true });
cmp_ok($h->{data_ms}[0], '<', 1200, 'HTTP/2: a completion\'s first token');
cmp_ok($h->{end_ms}, '>', 1400, 'HTTP/2: and its last');

# Many on one session, with different paces; nothing is mixed up.

my @h = $t->h2(requests => [ map { {
    uri => '/v1/chat/completions',
    body => chat("tokens=" . (20 + $_) . " delay=" . (1 + $_ % 7))
} } 1 .. 30 ]);
is(scalar(grep {
    my $want = join ' ', map { "w$_" } 1 .. 20 + $_;
    $t->sse_text($h[$_ - 1]{text}) eq $want
        && $h[$_ - 1]{text} =~ /\[DONE\]\n\n$/
} 1 .. 30), 30, 'HTTP/2: thirty streams on one session');

# An answer of a megabyte, and a prompt of one.

($h) = $t->h2(uri => '/v1/chat/completions', body => {
    messages => [ { role => 'user', content =>
        'script: tokens=60000 batch=16' } ] });
my $text = $t->decode($h->{text})->{choices}[0]{message}{content};
is(length $text, length join(' ', map { "w$_" } 1 .. 60000),
   'HTTP/2: a long answer');
($h) = $t->h2(uri => '/v1/completions', body => {
    prompt => 'word ' x 40000 . "\nscript: tokens=2" });
is($t->decode($h->{text})->{choices}[0]{text}, 'w1 w2',
   'HTTP/2: a long prompt');

# Limits of this configuration answer in our shape.

@h = $t->h2(uri => '/v1/chat/completions', streams => 40,
            body => chat('tokens=5 delay=200'));
my @refused = grep { $_->{status} == 503 } @h;
cmp_ok(@refused, '>=', 1, 'limit_conn: some of 40 are too many');
is(scalar(grep { $_->{status} == 200 } @h) + @refused, 40,
   'limit_conn: the others are served');
$t->error_ok($refused[0], 503, 'limit_conn: an error object');

# HTTP/1.1 over TLS.

SKIP: {
    my ($curl) = grep { -x } map { "$_/curl" } split /:/, $ENV{PATH};
    skip 'no curl', 4 if !$curl;

    $t->write_file('body.json', $t->encode(chat('prefill=2500 tokens=3')));
    my $url = 'https://127.0.0.1:' . $t->port('https')
        . '/v1/chat/completions';
    my $show = "-w '\\n%{http_version} %{time_starttransfer} %{time_total}'";

    for my $version ('1.1', '2') {
        my $out
            = `$curl -skN --http$version --data \@$dir/body.json $show $url`;
        my ($v, $first, $total) = $out =~ /\n(\S+) (\S+) (\S+)$/;
        is($v, $version, "curl, HTTP/$version");
        ok($first < 2 && $total > 2.4,
           "curl, HTTP/$version: first byte at $first s of $total s");
    }
}

my $log = $t->read_file('logs/llm.log');
like($log, qr/200 \d+ \d\.\d{3} scripted in=3 cached=0 out=5 queue=\d\.\d{3} /,
     'the access log');

$t->done();

# minimal.conf, where "make run" would start it.

my $run = Test::LLM->new();
mkdir $run->dir() . '/modules';
symlink $ENV{MODULE} // "$run->{build}/ngx_http_llm_module.so",
        $run->dir() . '/modules/ngx_http_llm_module.so';

SKIP: {
    skip 'the module is built in', 1 if $ENV{MODULE_STATIC};

    my @cmd = $run->nginx_cmd();
    splice @cmd, -4, 2, '-c', "$top/nginx-conf/minimal.conf";
    my $out = `@cmd -t 2>&1`;
    ok($? == 0 && $out =~ /test is successful/, 'minimal.conf: nginx -t')
        or diag($out);
}

done_testing();
