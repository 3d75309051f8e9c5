#!/usr/bin/perl

# nginx-conf/cluster.conf with three machines on loopback, each with an engine:
# conversations stay where they began, over HTTP/1.1 and HTTP/2; tokens pass as
# they come; a client that leaves is noticed behind the front; a machine that
# is gone takes only its own conversations along.

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
my $front = $t->read_file("$top/nginx-conf/cluster.conf");
my $n = 0;

$n += $front
    =~ s/listen 443 ssl/listen %%LISTEN%%; listen %%LISTEN:https%% ssl/;
$n += $front =~ s/(ssl_certificate +)\S+;/$1$crt;/;
$n += $front =~ s/(ssl_certificate_key +)\S+;/$1$key;/;
$n += $front =~ s/10\.0\.0\.(\d):8080/%%LISTEN:n$1%%/g;
is($n, 6, 'cluster.conf: found what to replace');

my $behind = join '', map { <<"CONF" } @nodes;
    llm_engine $_ unix:%%SOCKET:$_%%;
    server {
        listen %%LISTEN:$_%%;
        client_max_body_size 16m;
        location / { llm_pass $_; llm_route prefix=prefixes; }
    }
CONF

$t->engine('scripted', { name => $_ }, '--model', 'm') for @nodes;
$t->nginx("$front\n    llm_prefix_zone zone=prefixes:1m;\n$behind",
          workers => 2);

# Which node a request came to.

sub came {
    my ($send) = @_;
    my %before = map { $_ => $t->count('submit', $_) } @nodes;

    $send->();
    return join ' ', grep { $t->count('submit', $_) > $before{$_} } @nodes;
}

# A conversation up to its turn number $n.

sub turns {
    my ($id, $n) = @_;

    return [ { role => 'system', content => 'be brief' },
             { role => 'user', content => "no. $id\nscript: tokens=1" },
             map { { role => 'assistant', content => "w$_" },
                   { role => 'user', content => "script: tokens=$_" } }
             2 .. $n ];
}

my (%home, %used, @wrong);

for my $id (1 .. 20) {
    for my $n (1 .. 3) {
        my $body = { messages => turns($id, $n), max_tokens => 50 };
        my $text;
        my $node = came(sub {
            if ($n == 2) {
                my ($h) = $t->h2(uri => $chat,
                                 body => { %$body, stream => $true });
                $text = $t->sse_text($h->{text});
            } else {
                my $r = $t->request('POST', $chat, $body);
                $text = $r->{json}{choices}[0]{message}{content};
            }
        });

        my $want = join ' ', map { "w$_" } 1 .. $n;

        $home{$id} //= $node;
        push @wrong, "$id.$n came to '$node', not $home{$id}"
            if $node ne $home{$id};
        push @wrong, "$id.$n got '" . ($text // '') . "'"
            if ($text // '') ne $want;
    }
    $used{$home{$id}}++;
}

is(join('; ', @wrong), '', 'conversations stay, answers are whole');
is(join(' ', sort keys %used), 'n1 n2 n3', 'all machines are used');

# A large prompt arrives whole; what names no prompt is served somewhere.

my $large = 'y' x 5_000_000;
my $node = came(sub {
    my $r = $t->request('POST', $chat, { messages => [
        { role => 'system', content => $large }, turns(1, 1)->[1] ] });
    is($r->{status}, 200, 'a large prompt');
});
is(($t->submits($node))[-1]{'message0.hash'}, $t->fnv($large),
   'a large prompt: all of it');
is($t->request('GET', '/v1/models')->{json}{data}[0]{id}, 'm', 'models');
$t->error_ok($t->request('POST', $chat, '{"messages":'), 400, 'no JSON');
$t->error_ok($t->request('POST', $chat, { n => 0, messages => turns(1, 1) }),
             400, 'an error from behind', param => 'n');

# Tokens pass one by one, and a client that leaves is noticed.

my $slow = { stream => $true, messages => [
    { role => 'user', content => 'script: tokens=200 delay=50' } ] };
my ($c, $first);

$node = came(sub {
    $c = $t->connect();
    $t->send_request($c, 'POST', $chat, $slow);
    $first = $t->read_response($c, on_data => sub {
        $_[1]{body} =~ /w5\b/ ? 'stop' : '' });
});
ok($first->{stopped} && $first->{body} !~ /w50\b/, 'tokens pass as they come');
is($t->count('finish', $node), $t->count('accepted', $node) - 1, 'it runs');
close $c->{sock};
ok($t->wait_for(sub { $t->events($node) =~ /^finish .*reason=cancelled/m }),
   'a client that leaves frees its sequence');

# A machine is gone: its conversations move, the others stay.

my $gone = $home{1};
(my $without = $behind) =~ s/listen %%LISTEN:$gone%%;/listen %%LISTEN:none%%;/;
$t->config("$front\n    llm_prefix_zone zone=prefixes:1m;\n$without",
           workers => 2);
$t->reload(drain => 1);
@wrong = ();

for my $id (1 .. 20) {
    my $r;
    $node = came(sub { $r = $t->request('POST', $chat,
                                        { messages => turns($id, 2) }) });
    push @wrong, "$id: $r->{status}" if $r->{status} != 200;
    push @wrong, "$id came to '$node' from $home{$id}"
        if $home{$id} eq $gone ? $node eq $gone : $node ne $home{$id};
}
is(join('; ', @wrong), '', "without $gone: only its conversations moved");

$t->done();
done_testing();
