#!/usr/bin/perl

# The response cache with the real engine: an answer that is given again is the
# one that would be computed, and stays while the engine would give the same:
# through a restart and with other ranks, but not with another way to compute,
# or with other defaults for what a request does not say.

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

# The model with other defaults.

my $other = "$t->{dir}/model";
mkdir $other;
symlink $_, "$other/" . s{.*/}{}r for glob "$model/*";
unlink "$other/generation_config.json";
my $config = $t->decode($t->read_file("$model/generation_config.json"));
$t->write_file("$other/generation_config.json",
               $t->encode({ %$config, temperature => 1.5 }));

sub engine {
    my ($dir, %opt) = @_;
    $t->engine('real', $dir, '--model-name', 'tiny', '--threads', 1,
               '--max-context', 512, '--compute', 'f32', %opt);
}

engine($model);
$t->nginx(<<"CONF");
    llm_engine e unix:%%SOCKET%%;
    llm_response_cache_path $t->{dir}/cache keys_zone=answers:1m;
    server {
        listen %%LISTEN%%;
        location / { llm_pass e; llm_response_cache answers; }
    }
CONF

my @asked = (
    { temperature => 0 }, { seed => 7 }, { seed => 8 },
    { seed => 7, temperature => 0.9, n => 2, logprobs => $true },
);

sub ask {
    my ($more, %headers) = @_;
    my $r;
    $t->wait_for(sub {
        $r = $t->request('POST', '/v1/chat/completions', {
            messages => [ { role => 'user', content => 'What is a falcon?' } ],
            max_tokens => 12, %$more }, headers => \%headers);
        $r->{status} != 503 }, 20);
    $r->{cache} = $r->{headers}{'x-llm-cache'};
    $r->{body} =~ s/"id":"[^"]*"/"id":"X"/g;
    $r->{body} =~ s/"created":\d+/"created":1/g;

    # What was found in the prefix cache is not the answer.

    $r->{body} =~ s/"(cached_tokens|prompt_cache_\w+_tokens)":\d+/"$1":0/g;
    return $r;
}

# The text of each choice of a stream.

sub texts {
    my @text;
    for my $event (grep { ref } $t->sse($_[0]{body})) {
        $text[$_->{index}] .= $_->{delta}{content} // ''
            for @{ $event->{choices} };
    }
    return join '|', @text;
}

for my $more (@asked) {
    my $name = $t->encode($more);
    my %stream = (%$more, stream => $true);
    my $first = ask($more);
    is($first->{cache}, 'MISS', "$name: computed");
    my $again = ask($more);
    is($again->{cache}, 'HIT', "$name: again");
    is($again->{body}, $first->{body}, "$name: the same");
    my $new = ask($more, 'Cache-Control' => 'no-cache');
    is("$new->{cache} $new->{body}", "BYPASS $first->{body}",
       "$name: as computed anew");
    my $streamed = ask(\%stream);
    is($streamed->{cache}, 'HIT', "$name: as a stream");
    is(texts($streamed), texts(ask(\%stream, 'Cache-Control' => 'no-cache')),
       "$name: as a stream computed anew");
}

for my $case ([ 'a restart', 'HIT', $model ],
              [ 'other ranks', 'HIT', $model, '--ranks', 2 ],
              [ 'another way to compute', 'MISS', $model, '--compute', 'bf16' ],
              [ 'other weights', 'MISS', $model, '--weights', 'int8' ],
              [ 'other defaults', 'MISS', $other ])
{
    my ($what, $want, $dir, %opt) = @$case;
    $t->stop('engine');
    engine($dir, %opt);
    is(ask($asked[1])->{cache}, $want, $what);
}

$t->done();
done_testing();
