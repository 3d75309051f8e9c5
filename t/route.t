#!/usr/bin/perl

# Prefix-cache routing: llm_prefix_zone and llm_route; tags and hints in what
# the engine gets; what the zone learns from ACCEPTED, from the eviction log,
# from epochs and boots, in one worker and in several, over reloads.

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
my $zone = 'llm_prefix_zone zone=p:1m';

for my $case (
    [ 'llm_prefix_zone;', qr/invalid number of arguments/ ],
    [ 'llm_prefix_zone block=64;', qr/must have "zone" parameter/ ],
    [ 'llm_prefix_zone zone=p;', qr/invalid zone size "zone=p"/ ],
    [ 'llm_prefix_zone zone=:1m;', qr/invalid zone size "zone=:1m"/ ],
    [ 'llm_prefix_zone zone=p:x;', qr/invalid zone size "zone=p:x"/ ],
    [ 'llm_prefix_zone zone=p:;', qr/invalid zone size "zone=p:"/ ],
    [ 'llm_prefix_zone zone=p:31k;', qr/zone "zone=p:31k" is too small/ ],
    [ "$zone block=8;", qr/invalid block size "block=8"/ ],
    [ "$zone block=65537;", qr/between 16 and 65536/ ],
    [ "$zone block=x;", qr/invalid block size "block=x"/ ],
    [ "$zone inactive=x;", qr/invalid inactive value "inactive=x"/ ],
    [ "$zone inactive=;", qr/invalid inactive value "inactive="/ ],
    [ "$zone size=1m;", qr/invalid parameter "size=1m"/ ],
    [ "$zone; $zone;", qr/duplicate llm_prefix_zone "p"/ ],
    [ "$zone; llm_prefix_zone zone=p:2m;",
      qr/size 2097152 .*conflicts with already declared size 1048576/ ],
    [ "server { $zone; }", qr/"llm_prefix_zone" directive is not allowed/ ],
    [ "limit_req_zone \$uri zone=p:1m rate=1r/s; $zone;",
      qr/zone "p" is already declared for a different use/ ],
    [ 'llm_route;', qr/invalid number of arguments/ ],
    [ 'llm_route min_match=5%;', qr/must have "prefix" parameter/ ],
    [ 'llm_route prefix=;', qr/invalid parameter "prefix="/ ],
    [ 'llm_route prefix=none;', qr/zero size shared memory zone "none"/ ],
    [ "$zone; llm_route off prefix=p;", qr/invalid parameter "off"/ ],
    (map { [ "$zone; llm_route prefix=p $_;", qr/invalid parameter "\Q$_\E"/ ] }
     qw/ min_match=5 min_match=% min_match=101% min_match=-1% min_match=x%
         max_skew= max_skew=-1 max_skew=x max_skew=5% max_skew=99999999999
         x=y /),
    [ "$zone; llm_route prefix=p; llm_route off;", qr/is duplicate/ ],
) {
    my ($conf, $want) = @$case;
    my ($ok, $out) = $dry->config_test($conf);

    ok(!$ok, "refused: $conf");
    like($out, $want, "message: $conf");
}

for my $conf ('llm_prefix_zone zone=p:32k;', "$zone block=16 inactive=1h;",
              "$zone block=64k; llm_route prefix=p min_match=100% max_skew=0;",
              "llm_route prefix=p min_match=0%; $zone;", 'llm_route off;',
              "$zone; server { llm_route prefix=p; location /x/ {"
              . " llm_route off; } }")
{
    my ($ok, $out) = $dry->config_test($conf);
    ok($ok, "accepted: $conf") or diag $out;
}

# What the engine gets.

my $t = Test::LLM->new();
my $conf = <<'CONF';
    llm_engine e unix:%%SOCKET%%;
    llm_engine o unix:%%SOCKET:other%%;
    llm_prefix_zone zone=p:1m;
    llm_prefix_zone zone=fine:1m block=64;
    llm_prefix_zone zone=tiny:32k;
    llm_prefix_zone zone=short:1m inactive=2s;
    llm_route prefix=p;

    server {
        listen %%LISTEN%%;
        add_header X-Pid $pid;

        location /      { llm_pass e; }
        location /off/  { llm_pass e; llm_route off; }
        location /fine/ { llm_pass e; llm_route prefix=fine; }
        location /tiny/ { llm_pass e; llm_route prefix=tiny; }
        location /short/ { llm_pass e; llm_route prefix=short; }
        location /half/ { llm_pass e; llm_route prefix=p min_match=50%; }
        location /even/ { llm_pass e; llm_route prefix=p max_skew=1; }
        location /other/ { llm_pass o; }
    }
    server {
        listen %%LISTEN:s%%;
        llm_route prefix=fine min_match=90%;

        location /      { llm_pass e; }
        location /in/   { llm_route off;
                          location /in/in/ { llm_pass e; } }
    }
CONF

$t->engine('scripted', '--ranks', 4, '--model', 'org/tiny,alias',
           '--context', 10_000_000);
$t->nginx($conf, workers => 1);

my $chat = 'v1/chat/completions';

# Sends a text of so many bytes before a script; returns what was submitted.

sub sent {
    my ($text, $script, %opt) = @_;
    my $n = $t->count('submit', $opt{engine});
    my $r = $t->request('POST', $opt{uri} // "/$chat", $opt{body} // {
        messages => [ { role => 'system', content => $text },
                      @{ $opt{more} // [] },
                      { role => 'user', content => "script: $script" } ],
        max_tokens => 5, %{ $opt{with} // {} } },
        port => $opt{port}, %{ $opt{conn} // {} });
    is($r->{status}, 200, 'answered') or diag $r->{body};

    my $s = ($t->submits($opt{engine}))[-1];
    $s->{pid} = $r->{headers}{'x-pid'};
    $s->{tags} = [ split /,/, $s->{tags} // '' ];
    return $s;
}

sub text { my ($key, $n) = @_; substr "$key " x ($n / 2), 0, $n }
sub ends { join ' ', map { (split /:/)[1] } @{ $_[0]{tags} } }
sub hint { sent(@_)->{rank_hint} }

my ($epoch) = 0;
my $s = sent(text('a', 600), 'tokens=1 rank=2');
is($s->{rank_hint}, -1, 'first: no hint');
is(ends($s), '256 512', 'first: tags of whole blocks');
($epoch) = $t->events() =~ /^accepted .*rank=2 epoch=(\w+)/m;

my $more = sent(text('a', 600), 'tokens=1', more => [
    { role => 'user', content => text('q', 300) },
    { role => 'assistant', content => text('r', 300) } ]);
is($more->{rank_hint}, 2, 'second: the rank that has the beginning');
is($more->{rank_epoch}, $epoch, 'second: its epoch');
is(ends($more), '256 512 768 1024', 'second: more tags');
is("@{$more->{tags}}[0, 1]", "@{$s->{tags}}", 'second: the same beginning');

$s = sent(text('b', 600), 'tokens=1 rank=3');
is($s->{rank_hint}, -1, 'another beginning: no hint');
isnt($s->{tags}[0], $more->{tags}[0], 'another beginning: another tag');
is(hint(text('b', 600), 'tokens=1'), 3, 'another beginning: found again');
is(hint(text('a', 600), 'tokens=1'), 2, 'the first still');

# A tag is a whole block: the second differs in its last byte.

$s = sent(text('a', 509) . 'z', 'tokens=1');
is($s->{tags}[0], $more->{tags}[0], 'a shared block');
isnt($s->{tags}[1], $more->{tags}[1], 'a block that differs');
is($s->{rank_hint}, 2, 'one block is enough');

$s = sent('short', 'tokens=1');
is("$s->{rank_hint} @{$s->{tags}}", '-1 ', 'a short prompt has no tags');

# Reasoning that was sent back does not count, roles do.

my @said = map { { role => 'assistant', content => $_ } }
           text('c', 300), '<think>hm</think>' . text('c', 300);
my @tags = map { sent('x', 'tokens=1', more => [ $_ ])->{tags}[0] } @said,
           { role => 'user', content => text('c', 300) };
is($tags[0], $tags[1], 'past reasoning is left out');
isnt($tags[0], $tags[2], 'the role is part of it');

# Tenants, models, completions.

my $own = sent(text('a', 600), 'tokens=1 rank=1', with => { user => 'u' });
is($own->{rank_hint}, -1, 'another user does not see it');
is($own->{tenant}, 'u', 'the user is the tenant');
isnt($own->{tags}[0], $more->{tags}[0], 'and has other tags');
is(hint(text('a', 600), 'tokens=1', with => { user => 'u' }), 1,
   'the same user does');
is(hint(text('a', 600), 'tokens=1', with => { user => 'v' }), -1,
   'a third does not');
is(hint(text('a', 600), 'tokens=1', with => { user => '' }), 2,
   'an empty user is none');
is(hint(text('a', 600), 'tokens=1', with => { model => 'alias' }), 2,
   'an alias is the same model');

my $long = text('p', 600) . "\nscript: tokens=1 rank=3";
$s = sent('', '', uri => '/v1/completions', body => { prompt => $long });
is(ends($s), '256 512', 'completion: tags');
$s = sent('', '', uri => '/v1/completions', body => { prompt => $long });
is($s->{rank_hint}, 3, 'completion: found again');
$s = sent('', '', uri => '/v1/completions', body => {
    prompt => [ (9) x 130 ], max_tokens => 1 });
is(ends($s), '256 512', 'ids: four bytes each');

my $n = $t->count('submit');
$t->request('POST', '/v1/completions', { n => 2, max_tokens => 1,
    prompt => [ $long, text('o', 300) . "\nscript: tokens=1", 'x' ] });
my @s = ($t->submits())[$n .. $n + 5];
is(join(' ', map { $_->{rank_hint} } @s), '3 3 -1 -1 -1 -1',
   'several prompts: each by itself');
is(scalar(grep { exists $_->{tags} } @s), 4, 'several prompts: tags');

# Several ranks hold a beginning: the longest wins.

sent(text('d', 300), 'tokens=1 rank=0');
sent(text('d', 1200), 'tokens=1 rank=1');
is(hint(text('d', 1200), 'tokens=1 rank=1'), 1, 'the longest');

# Where nothing is said, and where something else is.

$s = sent(text('a', 600), 'tokens=1', uri => "/off/$chat");
is($s->{rank_hint}, -1, 'off: no hint');
is("@{$s->{tags}}", '', 'off: no tags');
$s = sent(text('a', 600), 'tokens=1 rank=1', uri => "/fine/$chat");
is($s->{rank_hint}, -1, 'another zone knows nothing');
is(ends($s), join(' ', map { $_ * 64 } 1 .. 9), 'smaller blocks');
is(hint(text('a', 600), 'tokens=1', uri => "/fine/$chat"), 1,
   'another zone has learnt');

my $port = $t->port('s');
is(hint(text('a', 600), 'tokens=1', port => $port), 1, 'server: inherited');
is(hint(text('a', 600) . text('y', 600), 'tokens=1', port => $port), -1,
   'server: min_match too');
is(hint(text('a', 600), 'tokens=1', port => $port, uri => "/in/in/$chat"), -1,
   'location: off is inherited');

# min_match: half of the tags.

sent(text('e', 600), 'tokens=1 rank=2');
is(hint(text('e', 600) . text('f', 400), 'tokens=1 rank=2',
        uri => "/half/$chat"), 2, 'min_match: enough');
is(hint(text('e', 600) . text('g', 700), 'tokens=1 rank=2',
        uri => "/half/$chat"), -1, 'min_match: not enough');
is(hint(text('e', 600) . text('h', 700), 'tokens=1 rank=2'), 2,
   'min_match: none here');

# Eviction: after ACCEPTED has been seen.  Rank 1 has two tags of g, rank 3 has
# four and loses three.

sent(text('g', 600), 'tokens=1 rank=1');
sent(text('g', 1200), 'tokens=1 prefill=100 rank=3 evict=1');
is(hint(text('g', 1200), 'tokens=1 prefill=100 rank=3 evict=0'), 1,
   'evicted: another has more now');
is(hint(text('g', 600), 'tokens=1 rank=1'), 1, 'evicted: on one rank only');
is(hint(text('g', 600), 'tokens=1 prefill=100 rank=1 evict=0'), 1,
   'not before');
is(hint(text('g', 600), 'tokens=1 rank=0'), -1, 'evicted: everywhere');
is(hint(text('g', 600), 'tokens=1 rank=0'), 0, 'evicted: learnt again');

# As many records as the log has can be read, one more cannot.

is(hint(text('g', 600), 'tokens=1 prefill=100 rank=0 log=16384'), 0,
   'log: filled');
is(hint(text('g', 600), 'tokens=1 prefill=100 rank=0 log=16385'), 0,
   'log: read in time');
is(hint(text('g', 600), 'tokens=1 rank=0'), -1, 'log: lapped');
is(hint(text('a', 600), 'tokens=1 rank=2'), -1, 'log: lapped for all ranks');
is(hint(text('g', 600), 'tokens=1'), 0, 'log: learnt again');

# A rank's epoch.

is(hint(text('a', 600), 'tokens=1 prefill=100 rank=2 epoch=1'), 2,
   'epoch: before');
is(hint(text('a', 600), 'tokens=1 rank=2'), -1, 'epoch: all of the rank');
is(hint(text('g', 600), 'tokens=1'), 0, 'epoch: of that rank only');
$s = sent(text('a', 600), 'tokens=1');
is($s->{rank_hint}, 2, 'epoch: learnt again');
isnt($s->{rank_epoch}, $epoch, 'epoch: the new one');

# inactive

sent(text('i', 600), 'tokens=1 rank=3', uri => "/short/$chat");
is(hint(text('i', 600), 'tokens=1', uri => "/short/$chat"), 3,
   'inactive: not yet');
sleep 4;
is(hint(text('i', 600), 'tokens=1', uri => "/short/$chat"), -1,
   'inactive: dropped');
is(hint(text('a', 600), 'tokens=1'), 2, 'inactive: elsewhere not');

# A small zone forgets the oldest and goes on.

sent(text("t$_", 8000), 'tokens=1 rank=1', uri => "/tiny/$chat") for 1 .. 30;
is(hint(text('t30', 8000), 'tokens=1', uri => "/tiny/$chat"), 1,
   'full: the newest is there');
is(hint(text('t1', 8000), 'tokens=1', uri => "/tiny/$chat"), -1,
   'full: the oldest is gone');
unlike($t->read_file('logs/error.log'), qr/no memory/, 'full: quietly');

# A prompt that has more tags than the zone has room for, and than there are.

$s = sent(text('huge', 900_000), 'tokens=1 rank=2', uri => "/tiny/$chat");
is(scalar @{$s->{tags}}, 3515, 'a large prompt: tags');
is(hint(text('huge', 900_000), 'tokens=1', uri => "/tiny/$chat"), 2,
   'a large prompt: its beginning is known');
$s = sent(text('huge', 400_000), 'tokens=1', uri => "/fine/$chat");
is(scalar @{$s->{tags}}, 4096, 'not more than 4096 tags');

# Balance.  Requests that go on keep rank 2 busy.

my @busy;
sub busy {
    my ($n, $rank) = @_;
    my $have = $t->count('accepted');

    for (1 .. $n) {
        push @busy, my $c = $t->connect();
        $t->send_request($c, 'POST', "/off/$chat", { messages => [
            { role => 'user', content => "script: tokens=100000 delay=20"
              . " rank=$rank" } ], stream => $true });
    }
    $t->wait_for(sub { $t->count('accepted') == $have + $n });
    sleep 0.1;
}

busy(1, 2);
is(hint(text('a', 600), 'tokens=1 rank=2', uri => "/even/$chat"), 2,
   'max_skew: one more is allowed');
busy(1, 2);
isnt(hint(text('a', 600), 'tokens=1 rank=2', uri => "/even/$chat"), 2,
     'max_skew: two more are not');
is(hint(text('a', 600), 'tokens=1 rank=2'), 2, 'max_skew: four by default');
busy(3, 2);
my $other = hint(text('a', 600), 'tokens=1 rank=2');
like($other, qr/^[013]$/, 'five more: the least loaded');

# The longest of those that are not overloaded.

sent(text('a', 300), 'tokens=1 rank=1', uri => "/off/$chat");
sent(text('k', 300), 'tokens=1 rank=1');
sent(text('k', 600), 'tokens=1 rank=2');
is(hint(text('k', 600), 'tokens=1 rank=2'), 1, 'five more: the next best');

# Those that were sent and that the board does not show yet: all at once.

$n = $t->count('submit');
my @burst;
for (1 .. 8) {
    push @burst, my $c = $t->connect();
    $t->send_request($c, 'POST', "/even/$chat", { messages => [
        { role => 'system', content => text('k', 300) },
        { role => 'user', content => 'script: tokens=1 first=300' } ] });
}
$t->read_response($_, limit => 20) for @burst;
my %hints;
$hints{$_->{rank_hint}}++ for ($t->submits())[$n .. $n + 7];
cmp_ok($hints{1} // 0, '<', 8, 'a burst does not go to one rank alone');
ok(!$hints{2}, 'and not to the busy one');

close $_->{sock} for @busy;
@busy = ();
$t->wait_for(sub { $t->count('finish') == $t->count('accepted') });

# Reload.

$t->reload(drain => 1);
is(hint(text('a', 600), 'tokens=1'), 2, 'reload: nothing is forgotten');

(my $changed = $conf) =~ s/zone=p:1m/zone=p:1m block=512/;
$t->config($changed);
kill 'HUP', $t->pid('nginx');
ok($t->wait_for(sub { $t->read_file('logs/error.log') =~
       /\[emerg\] .*llm_prefix_zone "p" uses block=512 while previously it/ }),
   'reload: another block is refused');
is(hint(text('a', 600), 'tokens=1'), 2, 'reload: the old goes on');

($changed = $conf) =~ s/zone=p:1m/zone=p:2m block=512/;
$t->config($changed);
$t->reload(drain => 1);
$s = sent(text('a', 600), 'tokens=1 rank=2');
is("$s->{rank_hint} " . ends($s), '-1 512', 'reload: another size, a new zone');

# Several workers share what they learn.

$t->config($conf, workers => 2);
$t->reload(drain => 1);
my %by;
for (1 .. 400) {
    my $s = sent(text('w', 600), 'tokens=1 rank=3');
    $by{$s->{pid}} //= $s->{rank_hint};
    last if keys %by == 2;
}
is(join(' ', sort values %by), '-1 3', 'two workers: one learns, both know');

%by = ();
for (1 .. 400) {
    my $s = sent(text('w', 600), 'tokens=1 rank=1');
    $by{$s->{pid}} = 1;
    last if keys %by == 2;
}
sent(text('w', 600), "tokens=1 prefill=100 rank=$_ evict=0") for 1, 3;
is(hint(text('w', 600), 'tokens=1 prefill=100 rank=3 evict=0'), -1,
   'two workers: evicted for both') for 1 .. 6;

# A killed worker leaves nothing locked.

sent(text('w', 600), 'tokens=1 rank=3');
kill 'KILL', ($t->workers())[0];
ok($t->wait_for(sub { $t->workers() == 2 }), 'another worker');
is(hint(text('w', 600), 'tokens=1'), 3, 'a dead worker: the zone is there');

# Another boot of the engine.

$t->stop('engine');
$t->engine('scripted', '--ranks', 2, '--model', 'org/tiny');
ok($t->wait_for(sub { ($t->request('POST', "/off/$chat",
    { messages => [ { role => 'user', content => 'x' } ] }))->{status}
    == 200 }), 'the engine is back');
sleep 2.5;                      # for both workers
is(hint(text('w', 600), 'tokens=1 rank=1'), -1, 'restart: all is void');
is(hint(text('w', 600), 'tokens=1'), 1, 'restart: learnt again')
    for 1 .. 4;

# Two engines in one zone.

$t->engine('scripted', { name => 'other' }, '--ranks', 4);
ok($t->wait_for(sub { ($t->request('POST', "/other/$chat",
    { messages => [ { role => 'user', content => 'x' } ] }))->{status}
    == 200 }), 'another engine');
sleep 2.5;
is(hint(text('w', 600), 'tokens=1 rank=3', uri => "/other/$chat",
        engine => 'other'), -1, 'two engines: nothing in common');
is(hint(text('w', 600), 'tokens=1', uri => "/other/$chat",
        engine => 'other'), 3, 'two engines: the one');
is(hint(text('w', 600), 'tokens=1'), 1, 'two engines: the other');

$t->done(allow => qr/block=512 while|exited on signal 9/);
done_testing();
