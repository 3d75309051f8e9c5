#!/usr/bin/perl

# Prefix routing with the real engine: conversations of several ranks come back
# to the rank that has them, what the engine evicts is forgotten, and a tenant
# does not find what another has computed.  The debug log tells what was hinted
# and how many tags the engine found.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::Bin/lib";

use JSON::PP;
use Test::LLM;
use Test::More;

my $true = JSON::PP::true();
my $top = Test::LLM::top();
my $t = Test::LLM->new();
my $model = "$top/engine/models/wordnet-tiny";

plan skip_all => 'no model' if !-e "$model/model.safetensors";
plan skip_all => 'nginx without debug log'
    if `@{[ ($t->nginx_cmd())[0] ]} -V 2>&1` !~ /--with-debug/;

sub engine {
    $t->engine('real', $model, '--model-name', 'tiny', '--ranks', 3,
               '--threads', 1, '--max-context', 1024, @_);
}

engine();
$t->nginx(<<'CONF', workers => 1, log => 'debug');
    llm_engine e unix:%%SOCKET%%;
    llm_prefix_zone zone=p:1m block=64;
    log_format llm '$llm_rank';

    server {
        listen %%LISTEN%%;
        access_log logs/llm.log llm;
        location / { llm_pass e; llm_route prefix=p; }
    }
CONF

# Asks and returns what is known: hint, rank, tags found, tags, cached tokens.

my $seen = 0;

sub ask {
    my ($messages, %more) = @_;
    my $r = $t->request('POST', '/v1/chat/completions', {
        messages => $messages, temperature => 0, max_tokens => 8, %more });
    is($r->{status}, 200, 'answered') or diag $r->{body};
    $seen++;

    my @l;
    $t->wait_for(sub { @l = $t->read_file('logs/error.log') =~
        /llm route: hint (-?\d+), rank (\d+), (\d+) of (\d+) tags/g;
        @l == 4 * $seen });
    return { hint => $l[-4], rank => $l[-3], found => $l[-2], tags => $l[-1],
             cached => $r->{json}{usage}{prompt_tokens_details}{cached_tokens},
             text => $r->{json}{choices}[0]{message}{content} };
}

sub user { +{ role => 'user', content => $_[0] } }

my @words = qw/ falcon violin river anchor lantern meadow copper harbour
                thistle walnut engine glacier /;

sub question {
    my ($i) = @_;
    return user(join ' ', "What is a $words[$i]?",
                map { "$words[($i * 7 + $_ * 5) % 12] $_ $i;" } 1 .. 40);
}

# Twelve conversations: the first turns all at once, so that all ranks get
# some, then two more one by one.

my @talk = map { [ question($_) ] } 0 .. 11;
my @conns = map {
    my $c = $t->connect();
    $t->send_request($c, 'POST', '/v1/chat/completions', {
        messages => $_, temperature => 0, max_tokens => 60,
        ignore_eos => $true });
    $c;
} @talk;

for my $i (0 .. 11) {
    my $r = $t->read_response($conns[$i], limit => 60);
    is($r->{status}, 200, 'answered');
    push @{$talk[$i]}, { role => 'assistant', content =>
                         $r->{json}{choices}[0]{message}{content} };
}
$seen = 12;

my (@rank, %ranks, @wrong);

for my $turn (2, 3) {
    for my $i (0 .. 11) {
        push @{$talk[$i]}, user("And turn $turn?");
        my $a = ask($talk[$i]);
        push @{$talk[$i]}, { role => 'assistant', content => $a->{text} };

        $rank[$i] //= $a->{hint};
        $ranks{$a->{rank}}++;
        push @wrong, "$i.$turn: hint $a->{hint}, rank $a->{rank}, not $rank[$i]"
            if $a->{hint} != $rank[$i] || $a->{rank} != $rank[$i];
        push @wrong, "$i.$turn: $a->{cached} cached, $a->{found} of $a->{tags}"
            if $a->{cached} < 64 || $a->{found} == 0;
    }
}
is(join('; ', @wrong), '', 'conversations come back, and are found');
is(scalar keys %ranks, 3, 'all ranks are used');

# Whole prompts again: every tag that lies in whole blocks is found.

my $a = ask($talk[3], user => 'alice');
is("$a->{hint} $a->{found} $a->{cached}", '-1 0 0', 'a tenant: nothing');
$a = ask($talk[3], user => 'alice');
cmp_ok($a->{hint}, '>=', 0, 'the tenant again: a hint');
cmp_ok($a->{found}, '>', $a->{tags} / 2, 'the tenant again: found');

# An engine with little memory evicts: what is gone gets no hint.

$t->stop('engine');
engine('--kv-memory', '1M');
ok($t->wait_for(sub { ($t->request('POST', '/v1/completions', {
       prompt => 'x', max_tokens => 1 }))->{status} == 200 }, 30),
   'another engine');

@wrong = ();
my ($gone, $kept) = (0, 0);

for my $round (1 .. 2) {
    for my $i ($round == 1 ? 0 .. 11 : reverse 0 .. 11) {
        my $a = ask([ question($i) ]);

        if ($round == 1) {
            push @wrong, "$i: hint $a->{hint}" if $a->{hint} != -1;
            next;
        }
        $a->{hint} == -1 ? $gone++ : $kept++;
        push @wrong, "$i: hint $a->{hint} and nothing there"
            if $a->{hint} != -1 && $a->{found} == 0;
        push @wrong, "$i: no hint and $a->{found} tags there"
            if $a->{hint} == -1 && $a->{found} != 0;
    }
}
is(join('; ', @wrong), '', 'hints are true');
cmp_ok($gone, '>', 0, 'some are gone');
cmp_ok($kept, '>', 0, 'some are there');

$t->done();
done_testing();
