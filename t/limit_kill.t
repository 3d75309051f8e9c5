#!/usr/bin/perl

# Limits while clients leave, workers are killed, stopped and replaced: in the
# end nothing is held.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::Bin/lib";

use Digest::SHA qw/ sha256_hex /;
use JSON::PP;
use Test::LLM;
use Test::More;
use Time::HiRes qw/ sleep time /;

my ($true, $false) = (JSON::PP::true(), JSON::PP::false());
my $seconds = $ENV{LONG} ? 60 : 8;
my $t = Test::LLM->new();

$t->write_file('accounts', join '', map {
    "account $_ concurrency=30 requests=100000r/m tokens=120000t/m "
    . "reserve=500\nkey $_ " . sha256_hex($_) . "\n"
} qw/ a b c /);

# The small zone has no room for all of its keys.

$t->engine('scripted', '--model', 'tiny');
$t->nginx(<<'CONF', workers => 3);
    llm_engine e unix:%%SOCKET%%;
    llm_accounts %%DIR%%/accounts zone=accounts:1m;
    llm_token_limit_zone $llm_account zone=account:1m rate=2000t/s;
    llm_token_limit_zone $arg_k zone=small:64k rate=1000t/s;

    server {
        listen %%LISTEN%%;
        location / {
            llm_token_limit zone=account burst=10000 reserve=full;
            llm_token_limit zone=small burst=5000;
            llm_pass e;
        }
    }
CONF

my $chat = '/v1/chat/completions';

sub client {
    my ($seed, $end) = @_;

    srand($seed);

    while (time() < $end) {
        eval {
            my $c = $t->connect();
            $t->send_request($c, 'POST', "$chat?k=" . int rand 3000, {
                stream => rand() < 0.5 ? $true : $false,
                max_tokens => 1 + int rand 100,
                messages => [ { role => 'user', content => 'script: '
                    . 'prompt_tokens=' . int(rand 50) . ' tokens='
                    . int(rand 100) . ' delay=' . int(rand 4)
                    . (rand() < 0.05 ? ' error=queue' : '') } ] },
                Authorization => 'Bearer ' . (qw/ a b c /)[rand 3]);

            if (rand() < 0.3) {
                sleep rand 0.1;
                close $c->{sock};
            } else {
                $t->read_response($c, limit => 5);
            }
        };
        sleep 0.01;
    }
}

my $end = time() + $seconds;
my @clients;

for my $seed (1 .. 40) {
    my $pid = fork() // die "fork: $!";

    if ($pid == 0) {
        client($seed, $end);
        POSIX::_exit(0);
    }
    push @clients, $pid;
}

my @what = qw/ KILL HUP KILL TERM /;
my $done = 0;

while (time() < $end) {
    my ($signal, @workers) = ($what[$done++ % @what], $t->workers());

    sleep 1;
    next if !@workers;
    kill $signal, $signal eq 'HUP' ? $t->pid('nginx')
                                   : $workers[$done % @workers];
}

waitpid $_, 0 for @clients;
cmp_ok($done, '>=', 4, 'workers were killed, stopped and replaced');

ok($t->wait_for(sub { $t->workers() == 3 }, 20), 'three workers');

# All tokens come back, and as many as may run at once do.

for my $account (qw/ a b c /) {
    ok($t->wait_for(sub {
        my $r = $t->request('POST', $chat, { max_tokens => 1, messages => [
            { role => 'user', content => 'script: tokens=0 prompt_tokens=0' }
            ] }, headers => { Authorization => "Bearer $account" });
        return ($r->{headers}{'x-ratelimit-remaining-tokens'} // 0) > 9700;
    }, 20), "$account: all tokens come back");
}

for my $account (qw/ a b c /) {
    my @c = map {
        my $c = $t->connect();
        $t->send_request($c, 'POST', $chat, { stream => $true, max_tokens => 1,
            messages => [ { role => 'user', content =>
                'script: tokens=1 prompt_tokens=1 prefill=2000' } ] },
            Authorization => "Bearer $account");
        $c;
    } 1 .. 31;

    my %n;
    $n{$_->{status} . (ref $_->{json} ? " $_->{json}{error}{code}" : '')}++
        for map { $t->read_response($_) } @c;
    is(join(', ', map { "$n{$_} x $_" } sort keys %n),
       '30 x 200, 1 x 429 concurrency_limit_exceeded',
       "$account: nothing is held any more");
}

$t->done(allow => qr/exited on signal 9/);
done_testing();
