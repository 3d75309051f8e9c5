#!/usr/bin/perl

# reserve=full is an upper bound of what the real engine counts: with its
# tokenizer and template, whatever the prompt looks like.

use strict;
use warnings;
use utf8;

use FindBin;
use lib "$FindBin::Bin/lib";

use JSON::PP;
use Test::LLM;
use Test::More;

my $t = Test::LLM->new();
my $model = Test::LLM::top() . '/engine/models/wordnet-tiny';

plan skip_all => 'no model' if !-e "$model/model.safetensors";

$t->engine('real', $model, '--model-name', 'tiny', '--max-context', 1024);
$t->nginx(<<'CONF');
    llm_engine e unix:%%SOCKET%%;
    llm_token_limit_zone $http_x_key zone=z:1m rate=1t/m;
    server {
        listen %%LISTEN%%;
        location / {
            llm_pass e;
            llm_token_limit zone=z burst=1000000 reserve=full;
        }
    }
CONF

my $key = 0;

# Whether a request keeps what was reserved for it, and what is left after it.

sub bound {
    my ($what, $uri, $body) = @_;
    my %h = (headers => { 'X-Key' => ++$key });
    my $r = $t->request('POST', $uri, $body, %h);
    my $left = $r->{headers}{'x-ratelimit-remaining-tokens'} // 0;
    my $used = ref $r->{json} && ref $r->{json}{usage}
               ? $r->{json}{usage}{total_tokens} : -1;

    is($r->{status}, 200, "$what: answered") or diag($r->{body});
    cmp_ok($used, '<=', 1000000 - $left, "$what: within the bound");
    $r = $t->request('POST', '/v1/completions',
                     { prompt => '', max_tokens => 1 }, %h);
    is(1000000 - $used - 64 - 1, $r->{headers}{'x-ratelimit-remaining-tokens'},
       "$what: $used settled");
}

sub chat {
    my ($what, @texts) = @_;
    my @roles = qw/ user assistant /;
    my $i = 0;

    bound($what, '/v1/chat/completions', { max_tokens => 3, messages => [
        map { { role => $roles[$i++ % 2], content => $_ } } @texts ] });
}

my @odd = ('', ' ', "\n\n", 'falcon', 'x' x 300, "\x{1f985}" x 40,
           '<｜User｜>' x 10, '<｜end▁of▁sentence｜>' x 5, '</think>' x 9,
           "\x{0301}" x 60, '1234567890' x 20, "a b\tc\r\n" x 30,
           join('', map { chr 0x4e00 + 37 * $_ } 1 .. 120));

chat("chat $_", $odd[$_]) for 0 .. $#odd;
chat('a talk', ('') x 21);
chat('a longer one', ('What is a falcon?') x 31);
bound("text $_", '/v1/completions', { prompt => $odd[$_], max_tokens => 3 })
    for 1 .. $#odd;
bound('ids', '/v1/completions', { prompt => [ 1 .. 50 ], max_tokens => 3 });
bound('choices', '/v1/completions', {
    prompt => [ 'one', 'two' ], n => 2, max_tokens => 4 });
bound('the whole context', '/v1/chat/completions', {
    messages => [ { role => 'user', content => 'What is a falcon?' } ] });

$t->done();
done_testing();
