#!/usr/bin/perl

# What policy costs: the worker's CPU time for a request with a prompt of 1 KB,
# and for a token of a stream, with everything on (accounts and their limits,
# token limits, prices, balances, metrics, routing, the response cache passed
# by, a usage log) beside llm_pass alone; and the worker's system calls for
# both, where strace is there.  All in one run, in turn.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::Bin/../../t/lib";

use Digest::SHA qw/ sha256_hex /;
use JSON::PP;
use Test::LLM;
use Test::Load;
use Time::HiRes qw/ sleep /;

my $rounds = $ENV{ROUNDS} // 9;
my $requests = 5000;
my $streams = 32;
my $tokens = 300;

my $t = Test::LLM->new();
my $tools = "$t->{build}/tests";
my $ledger = "$t->{build}/llm-ledger";

$t->write_file('accounts', "account a tier=paid requests=6000000r/m "
               . "tokens=6000000000t/m concurrency=1000\nkey a "
               . sha256_hex('sk-a') . "\n");

my $state = $t->write_file('state', '');
system("$ledger credit --state $state a 1000000 >/dev/null") == 0
    or die 'llm-ledger credit failed';

$t->engine('scripted', '--ranks', 8);
$t->nginx(sprintf(<<'CONF', $state), log => 'warn');
    access_log off;
    keepalive_requests 1000000;
    llm_engine e unix:%%%%SOCKET%%%%;
    include %%%%TOP%%%%/nginx-conf/usage-log.conf;
    llm_accounts %%%%DIR%%%%/accounts zone=accounts:1m state=%s;
    llm_token_limit_zone $llm_account zone=own:1m rate=60000000t/s;
    llm_token_limit_zone $server_name zone=all:1m rate=60000000t/s;
    llm_prefix_zone zone=prefixes:16m;
    llm_response_cache_path %%%%DIR%%%%/cache keys_zone=answers:1m;
    llm_price hit=0.14 miss=0.55 output=2.19;
    llm_price_window 16:30-00:30 UTC hit=50%% miss=25%% output=25%%;

    server {
        listen %%%%LISTEN%%%%;

        location /all/ {
            llm_pass e;
            llm_token_limit zone=own burst=100000000;
            llm_token_limit zone=all burst=100000000 reserve=full;
            llm_route prefix=prefixes;
            llm_response_cache answers;
            access_log logs/usage.log llm_usage buffer=64k;
        }

        location /metrics { llm_metrics; }
    }
CONF

# The bare path in an nginx of its own: accounts are one for all of http.

my $bare = Test::LLM->new();
$bare->nginx(sprintf(<<'CONF', $t->socket_path()), log => 'warn');
    access_log off;
    keepalive_requests 1000000;
    llm_engine e unix:%s;
    server { listen %%%%LISTEN%%%%; location /all/ { llm_pass e; } }
CONF

my %way = (all => $t, bare => $bare);
my @key = ('-H', 'x-api-key: sk-a');

for ($t, $bare) {
    my $s = $_;
    $s->wait_for(sub {
        $s->request('GET', '/all/v1/models', undef,
                    headers => { 'x-api-key' => 'sk-a' })->{status} == 200;
    }) or die 'no engine';
}

# A prompt of 1 KB, and a script.

sub body {
    my ($script) = @_;
    my $text = substr('a word or two ' x 80, 0, 1000) . "\nscript: $script";
    return encode_json({ stream => JSON::PP::true(), messages => [
        { role => 'user', content => $text } ] });
}

sub load_way {
    my ($way, @args) = @_;
    return load_run($way{$way}, '-u', '/all/v1/chat/completions', @key, @args);
}

my (%request, %token);

for my $round (0 .. $rounds) {
    for my $way ($round % 2 ? qw/ bare all / : qw/ all bare /) {
        my $before = worker_ns($way{$way});
        load_way($way, '-c', 8, '-n', $requests, '-b', body('tokens=1'));
        my $us = (worker_ns($way{$way}) - $before) / $requests / 1000;
        push @{$request{$way}}, $us if $round;

        $before = worker_ns($way{$way});
        my $r = load_way($way, '-c', $streams, '-n', $streams,
                         '-b', body("tokens=$tokens delay=5"));
        $us = (worker_ns($way{$way}) - $before) / $r->{events} / 1000;
        push @{$token{$way}}, $us if $round;
    }
}

# The same in turn, so that what is common cancels out.

sub report {
    my ($what, $d) = @_;
    my @more = map { $d->{all}[$_] - $d->{bare}[$_] } 0 .. $#{ $d->{all} };

    printf "  %-34s %8.2f %8.2f %8.2f\n", $what, median(@{ $d->{bare} }),
           median(@{ $d->{all} }), median(@more);
}

printf "\nworker CPU, us (median of %d)\n", $rounds;
printf "  %-34s %8s %8s %8s\n", '', 'bare', 'all on', 'more';
report('a request, 1 KB of prompt', \%request);
report('a token of a stream', \%token);

# System calls, less those of a run with one token.

if (grep { -x "$_/strace" } split /:/, $ENV{PATH}) {
    my %calls;

    for my $way (qw/ bare all /) {
        for my $n (1, $tokens + 1) {
            my ($pid) = $way{$way}->workers();
            my $out = "$t->{dir}/strace";
            my $tracer = fork() // die "fork: $!";
            if ($tracer == 0) {
                open STDERR, '>', '/dev/null';
                exec 'strace', '-f', '-o', $out, '-p', $pid;
            }
            $t->wait_for(sub { $t->read_file("/proc/$pid/status") =~
                               /TracerPid:\s+[1-9]/ }, 5)
                or die 'strace did not attach';
            load_way($way, '-c', $streams, '-n', $streams,
                     '-b', body("tokens=$n delay=5"));
            kill 'INT', $tracer;
            waitpid $tracer, 0;
            $calls{$way}{$n} = () = $t->read_file($out) =~ /\w\(/g;
        }
    }

    printf "\nsystem calls of the worker, %d streams\n", $streams;
    printf "  %-34s %8s %8s\n", '', 'bare', 'all on';
    printf "  %-34s %8.2f %8.2f\n", 'of a request with one token',
           map { $calls{$_}{1} / $streams } qw/ bare all /;
    printf "  %-34s %8.3f %8.3f\n", 'of each further token',
           map { ($calls{$_}{$tokens + 1} - $calls{$_}{1})
                 / $streams / $tokens } qw/ bare all /;
}

$_->stop('nginx', 'QUIT') for $t, $bare;
