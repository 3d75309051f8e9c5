#!/usr/bin/perl

# nginx-conf/cluster-foreign.conf with three servers that are not ours, on
# loopback: conversations stay where they began, and the front counts, prices
# and limits them.

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
my @nodes = qw/ n1 n2 n3 /;
my $chat = '/v1/chat/completions';

my ($crt, $key) =
    $t->tls() =~ /ssl_certificate (\S+); ssl_certificate_key (\S+);/;
my $front = $t->read_file("$top/nginx-conf/cluster-foreign.conf");
my $n = 0;

$n += $front
    =~ s/listen 443 ssl/listen %%LISTEN%%; listen %%LISTEN:https%% ssl/;
$n += $front =~ s/(ssl_certificate +)\S+;/$1$crt;/;
$n += $front =~ s/(ssl_certificate_key +)\S+;/$1$key;/;
$n += $front =~ s/10\.0\.0\.(\d):8000/127.0.0.1:%%PORT:n$1%%/g;
$n += $front =~ s/rate=100000t\/m/rate=60t\/m/;
$n += $front =~ s/burst=200000/burst=20000/;
is($n, 8, 'cluster-foreign.conf: found what to replace');

for my $node (@nodes) {
    $t->spawn($node, $^X, "$FindBin::Bin/lib/foreign.pl", $t->port($node),
              "$t->{dir}/logs/$node.log");
    $t->wait_for(sub { $t->listens($t->port($node)) });
}

$t->nginx(<<"CONF" . $front, workers => 2);
    include $top/nginx-conf/usage-log.conf;
    access_log logs/usage.log llm_usage;
CONF

sub count { scalar(() = $t->read_file("logs/$_[0].log") =~ /\n/g) }

# A conversation's turn, and the servers that it came to.

sub turn {
    my ($id, $turn, %answer) = @_;
    my %before = map { $_ => count($_) } @nodes;
    my $r = $t->request('POST', $chat, { model => 'other', stream => $true,
        messages => [ { role => 'user', content => "no. $id" },
                      map { { role => 'assistant', content => "a$_" },
                            { role => 'user', content => "q$_" } }
                      2 .. $turn ], answer => \%answer });

    $r->{node} = join ' ', grep { count($_) > $before{$_} } @nodes;
    return $r;
}

my @pieces = map { 'data: ' . $t->encode($_) . "\n\n" }
    { choices => [ { delta => { content => 'x' } } ] },
    { choices => [ { delta => {}, finish_reason => 'stop' } ] },
    { choices => [], usage => { prompt_tokens => 100, completion_tokens => 10,
                                prompt_tokens_details => {
                                    cached_tokens => 60 } } };
my %answer = (headers => { 'Content-Type' => 'text/event-stream' },
              pieces => [ @pieces, "data: [DONE]\n\n" ]);
my (%home, %used, @wrong);

for my $id (1 .. 15) {
    for my $turn (1 .. 3) {
        my $r = turn($id, $turn, %answer);

        $home{$id} //= $r->{node};
        push @wrong, "$id.$turn came to '$r->{node}', not $home{$id}"
            if $r->{node} ne $home{$id};
        push @wrong, "$id.$turn: $r->{status}"
            if $r->{body} ne join '', @{ $answer{pieces} };
    }
    $used{$home{$id}}++;
}

is(join('; ', @wrong), '', 'conversations stay, answers are whole');
is(join(' ', sort keys %used), 'n1 n2 n3', 'all servers are used');

my @lines;
$t->wait_for(sub { @lines = split /\n/, $t->read_file('logs/usage.log');
                   @lines == 45 }, 5);
my %sum;
for (map { $t->decode($_) } @lines) {
    $sum{$_->{model}}++;
    $sum{hit} += $_->{cached_tokens};
    $sum{input} += $_->{prompt_tokens};
    $sum{output} += $_->{completion_tokens};
    $sum{cost} += $_->{cost} * 1e9;
}
is(join(' ', map { "$_=$sum{$_}" } sort keys %sum),
   'cost=2353500 hit=2700 input=4500 other=45 output=450', 'usage and cost');

# Beyond the limit nobody is asked.

my $large = turn(0, 1, headers => $answer{headers}, pieces => [
    'data: ' . $t->encode({ choices => [], usage => {
        prompt_tokens => 10, completion_tokens => 30000 } }) . "\n\n" ]);
is($large->{status}, 200, 'much is used');
my $r = turn(0, 2, %answer);
$t->error_ok($r, 429, 'beyond the limit');
is($r->{node}, '', 'beyond the limit: nobody was asked');

$t->done();
done_testing();
