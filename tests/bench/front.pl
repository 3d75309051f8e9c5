#!/usr/bin/perl

# What nginx and the module cost, beside proxy_pass to a server that emits the
# same stream, and beside the channel without nginx: time to the first byte,
# and the worker's CPU time per streamed token.  All in one run, in turn.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::Bin/../../t/lib";

use JSON::PP;
use Test::LLM;
use Test::Load;
use Time::HiRes qw/ sleep /;

my $rounds = $ENV{ROUNDS} // 5;
my $streams = 64;
my $tokens = 400;
my $delay = 10;

my $t = Test::LLM->new();
my $tools = "$t->{build}/tests";
my $backend = $t->port('backend');

$t->engine('scripted');
$t->spawn('backend', "$tools/bench/sse_server", '-p', $backend,
          '-t', $tokens, '-d', $delay);
$t->nginx(<<"CONF", log => 'warn');
    access_log off;
    keepalive_requests 1000000;
    llm_engine e unix:%%SOCKET%%;

    upstream backend {
        server 127.0.0.1:$backend;
        keepalive 256;
        keepalive_requests 1000000;
    }

    server {
        listen %%LISTEN%%;

        location /llm/ { llm_pass e; }

        location /proxy/ {
            proxy_pass http://backend/;
            proxy_http_version 1.1;
            proxy_set_header Connection "";
            proxy_buffering off;
        }
    }
CONF

$t->wait_for(sub {
    $t->request('GET', '/llm/v1/models')->{status} == 200;
}) or die 'no engine';

sub body {
    my ($script) = @_;
    return encode_json({ stream => JSON::PP::true(), messages => [
        { role => 'user', content => "script: $script" } ] });
}

my (%cpu, %first);

for (1 .. $rounds) {
    for my $way (qw/ llm proxy /) {
        my $before = worker_ns($t);
        my $r = load_run($t, '-c', $streams, '-n', $streams * 2,
                         '-u', "/$way/v1/chat/completions",
                         '-b', body("tokens=$tokens delay=$delay"));
        push @{$cpu{$way}}, (worker_ns($t) - $before) / $r->{events} / 1000;
    }

    my $r = load_run($t, '-c', 1, '-n', 2000,
                     '-u', '/llm/v1/chat/completions',
                     '-b', body('tokens=1'));
    push @{$first{nginx}}, $r->{first_p50};
    push @{$first{nginx99}}, $r->{first_p99};

    my $out = `$tools/chan_client --socket @{[ $t->socket_path() ]} \\
               --total 2000 --concurrent 1 --chat 'script: tokens=1' 2>&1`;
    push @{$first{channel}}, $1 * 1000
        if $out =~ /first token\D+p50\D*([\d.]+)/i
        || $out =~ /ttft\D+([\d.]+)/i;
}

printf "\nworker CPU per streamed token, %d streams, us (median of %d)\n",
       $streams, $rounds;
printf "  %-28s %8.2f\n", 'llm_pass', median(@{$cpu{llm}});
printf "  %-28s %8.2f\n", 'proxy_pass, buffering off', median(@{$cpu{proxy}});
printf "  %-28s %8.2f\n", 'ratio',
       median(@{$cpu{llm}}) / median(@{$cpu{proxy}});

printf "\ntime to first event, one connection, us (median of %d)\n", $rounds;
printf "  %-28s %8.1f   p99 %.1f\n", 'through nginx',
       median(@{$first{nginx}}), median(@{$first{nginx99}});
if ($first{channel}) {
    printf "  %-28s %8.1f\n", 'channel alone', median(@{$first{channel}});
    printf "  %-28s %8.1f\n", 'added by nginx and the module',
           median(@{$first{nginx}}) - median(@{$first{channel}});
}

$t->stop('nginx', 'QUIT');
