#!/usr/bin/perl

# The pages in a browser: the status page follows what nginx and the engine do,
# the playground talks to the model; both on a phone and on a desk, in light
# and in dark, with nothing that their policy would refuse.

use strict;
use warnings;

use Digest::SHA qw/ sha256_base64 /;
use FindBin;
use lib "$FindBin::Bin/lib";

use JSON::PP;
use Test::Browser;
use Test::LLM;
use Test::More;
use Time::HiRes qw/ sleep /;

my $true = JSON::PP::true();
my $t = Test::LLM->new();
my $chat = '/v1/chat/completions';

# Configurations of the playground.

sub conf_ok {
    my ($text, $want, $what) = @_;
    my ($ok, $out) = $t->config_test("server { listen %%LISTEN%%; $text }");
    ok($want ? !$ok && index($out, $want) >= 0 : $ok, $what) or diag($out);
}

my $rule = ', it must begin with "/" and have letters, digits, "-._~" and "/" '
    . 'only';

conf_ok('location / { llm_playground; }', '', 'playground: no path');
conf_ok('location / { llm_playground /a-b/_c.d~1/; }', '', 'playground: path');
for (qw{ v1 //host/ http://host/v1/ /v1?x /"> /v1/$uri /a%41 }) {
    my $path = /["\$>]/ ? "'$_'" : $_;
    conf_ok("location / { llm_playground $path; }",
            qq(invalid path "$_"$rule), "playground: $_");
}
conf_ok('location / { llm_playground ""; }', qq(invalid path ""$rule),
        'playground: empty');
conf_ok('location / { llm_playground; llm_playground /v1; }',
        '"llm_playground" directive is duplicate', 'playground: twice');
conf_ok('location / { llm_playground /a /b; }',
        'invalid number of arguments in "llm_playground" directive',
        'playground: two paths');
conf_ok('llm_playground;', '"llm_playground" directive is not allowed here',
        'playground: server');

# A name that would be HTML.

my $name = q{<img src=x onerror=alert(1)>&"'};
my $plain = 'plain';

$t->engine('scripted', '--ranks', 3, '--model', "$name,$plain");
$t->nginx(<<'CONF', workers => 2);
    llm_engine e unix:%%SOCKET%%;
    map $http_authorization $denied { "Bearer good" 0; default 1; }
    server {
        listen %%LISTEN%%;
        listen %%LISTEN:other%%;
        location / { llm_pass e; }
        location /keys/ { if ($denied) { return 401; } llm_pass e; }
        location = /status { llm_status; }
        location = /cost { llm_status cost=2; }
        location /paid/ { llm_price hit=1 miss=2 output=4; llm_pass e; }
        location = /playground { llm_playground; }
        location /desk/ { llm_playground /keys; location /desk/in/ { } }
        location = /favicon.ico { return 204; }
    }
CONF
$t->wait_for(sub { $t->request('GET', '/v1/models')->{status} == 200 });

my $base = 'http://127.0.0.1:' . $t->port('http');
my $other = 'http://127.0.0.1:' . $t->port('other');

# What is sent.

for ([ '/playground', '/v1/' ], [ '/desk/', '/keys' ]) {
    my ($uri, $api) = @$_;
    my $r = $t->request('GET', $uri);
    my ($script) = $r->{body} =~ /<script>(.*?)<\/script>/s;
    my $hash = sha256_base64($script);
    $hash .= '=' while length($hash) % 4;
    my $csp = $r->{headers}{'content-security-policy'};

    is($r->{headers}{'content-type'}, 'text/html; charset=utf-8',
       "$uri: type");
    is($r->{headers}{'cache-control'}, 'no-store', "$uri: not stored");
    is($r->{headers}{'referrer-policy'}, 'no-referrer', "$uri: no referrer");
    like($csp, qr/script-src 'sha256-\Q$hash\E'(?:;|$)/, "$uri: its script");
    unlike($csp, qr/unsafe/, "$uri: nothing unsafe");
    like($r->{body}, qr/name="llm-api" content="\Q$api\E"/, "$uri: its API");
    unlike($r->{body}, qr/%VALUE%/, "$uri: nothing left to fill in");
    is(join(' ', grep { !m{^http://www\.w3\.org/} }
            $r->{body} =~ m{(?:https?:)?//[a-z][^\s"')]*\.[a-z]+[^\s"')]*}g),
       '', "$uri: names no other server");
    unlike($r->{body}, qr/innerHTML|outerHTML|insertAdjacentHTML|\beval\b/,
           "$uri: makes no HTML of data");
}
is($t->request('HEAD', '/playground')->{status}, 200, 'HEAD');
is($t->request('POST', '/playground', {})->{status}, 405, 'POST');
is($t->request('GET', '/desk/in/x')->{status}, 404, 'a location inside');

SKIP: {
    my $why = Test::Browser->missing();
    skip $why, 1 if $why;
    browse();
}

$t->done(allow => qr/\[emerg\]/);
done_testing();


# What is the same for each page: no error, no other server, no wider than the
# screen, as dark as asked for, and a policy that holds.

sub sound {
    my ($b, $page, $scheme, $what) = @_;
    my $log = $b->log($page);

    is(join("\n", @{ $log->{errors} }), '', "$what: no errors");
    is(join(' ', grep { !m{^(?:\Q$base\E/|data:)} } @{ $log->{requests} }), '',
       "$what: no other server");
    is($b->eval($page, 'document.documentElement.scrollWidth - innerWidth '
                . '> 0'), JSON::PP::false(), "$what: fits");
    my $light = $b->eval($page, 'getComputedStyle(document.body)'
                         . '.backgroundColor.match(/\d+/g)[0] > 128');
    is($light ? 'light' : 'dark', $scheme, "$what: colours");
}

sub policy {
    my ($b, $page, $what) = @_;

    $b->eval($page, q{ (() => {
        const s = document.createElement("script");
        s.textContent = "window.hacked = 1";
        document.body.append(s);
    })() });
    is($b->eval($page, 'window.hacked || 0'), 0, "$what: no other script");
    is($b->eval($page, qq{ fetch("$other/status").then(() => 1, () => 0) }), 0,
       "$what: no other server's data");
    is($b->eval($page, qq{ fetch("$base/status").then(() => 1, () => 0) }), 1,
       "$what: but its own's");
}

sub text { $_[0]->eval($_[1], qq{document.querySelector("$_[2]").innerText}) }

sub waits {
    my ($b, $page, $js, $what) = @_;
    ok($b->wait($page, $js), $what) or diag($b->{error});
}

sub browse {
    my $b = Test::Browser->new();

    for my $size ([ 'desk', 1280, 900 ], [ 'phone', 390, 844 ],
                  [ 'narrow', 320, 560 ])
    {
        my ($at, $width, $height) = @$size;
        for my $scheme ($at eq 'narrow' ? 'dark' : (qw/ light dark /)) {
            status_looks($b, $at, $width, $height, $scheme);
            playground_looks($b, $at, $width, $height, $scheme);
        }
    }

    playground($b);
    keys_asked($b);
    status($b);
}

sub status_looks {
    my ($b, $at, $width, $height, $scheme) = @_;
    my $p = "status, $at, $scheme";

    is($b->open($p, url => "$base/status", width => $width,
                height => $height, scheme => $scheme), 200, $p);
    waits($b, $p, q{document.querySelector("#pill").innerText === "live"},
          "$p: live");
    is(text($b, $p, '#model'), $name, "$p: the name is text");
    is($b->eval($p, 'document.images.length'), 0, "$p: and no image");
    is($b->eval($p, 'document.querySelectorAll("#ranks tr").length'), 3,
       "$p: ranks");
    is($b->eval($p, 'document.querySelector("#money").hidden'), $true,
       "$p: no money where there is none");
    sound($b, $p, $scheme, $p);
    $b->shot($p, "status-$at-$scheme");
    $b->close($p);
}

sub playground_looks {
    my ($b, $at, $width, $height, $scheme) = @_;
    my $p = "playground, $at, $scheme";

    is($b->open($p, url => "$base/playground", width => $width,
                height => $height, scheme => $scheme,
                touch => $at ne 'desk'), 200, $p);
    waits($b, $p, 'document.querySelectorAll("#model option").length === 2',
          "$p: models");
    is($b->eval($p, 'document.querySelector("#model").value'), $name,
       "$p: a name is text");
    sound($b, $p, $scheme, $p);

    if ($at ne 'desk') {
        $b->click($p, '#options');
        $b->fill($p, '#system', 'Be brief.');
        ok($b->click($p, '#done'), "$p: options open and close")
            or diag($b->{error});
    }
    $b->fill($p, '#text', "script: tokens=60 reasoning=5");
    $b->click($p, '#send');
    waits($b, $p, '/w60/.test(document.querySelector("#talk").innerText) && '
          . 'document.querySelector("#stop").hidden', "$p: an answer");
    sound($b, $p, $scheme, "$p, answered");
    $b->shot($p, "playground-$at-$scheme");
    $b->close($p);
}

sub playground {
    my ($b) = @_;
    my $p = 'playground';

    $b->open($p, url => "$base/playground");
    waits($b, $p, 'document.querySelectorAll("#model option").length === 2',
          "$p: models");

    # What is set is what is asked for.

    $b->eval($p, qq{document.querySelector("#model").value = "$plain"});
    $b->fill($p, '#system', 'Be brief.');
    $b->fill($p, '#temperature', '0.5');
    $b->fill($p, '#top_p', '0.9');
    $b->fill($p, '#max_tokens', '40');
    $b->fill($p, '#seed', '7');
    $b->fill($p, '#text', "hi\nscript: tokens=9 reasoning=3 prompt_tokens=30 "
             . 'cached=20');
    $b->press($p, 'Enter');
    waits($b, $p, q{/w9/.test(document.querySelector("#talk").innerText)},
          "$p: the answer");
    waits($b, $p, q{document.querySelector("#stop").hidden}, "$p: it ends");

    my ($s) = reverse $t->submits();
    is($s->{temperature} + 0, 0.5, "$p: temperature");
    is(sprintf('%.2f', $s->{top_p}), '0.90', "$p: top_p");
    is($s->{max_tokens}, 40, "$p: max_tokens");
    is($s->{seed}, 7, "$p: seed");
    is($s->{message0}, 'Be brief.', "$p: system prompt");

    is($b->eval($p, 'document.querySelector(".assistant > .text").innerText'),
       'w1 w2 w3 w4 w5 w6 w7 w8 w9', "$p: what was said");
    is($b->eval($p, 'document.querySelector("details").open'),
       JSON::PP::false(), "$p: reasoning is folded");
    $b->click($p, 'summary');
    is($b->eval($p, 'document.querySelector("details .text").innerText'),
       'r1 r2 r3', "$p: reasoning, unfolded");
    like(text($b, $p, 'summary'), qr/^Thought for \d/, "$p: for how long");
    my $stats = text($b, $p, '.stats');
    like($stats, qr/\d tokens\/s/, "$p: speed");
    like($stats, qr/\b12 tokens\b/, "$p: tokens");
    like($stats, qr/\d ms to the first/, "$p: time to the first");
    like($stats, qr/30 in the prompt, 20 cached/, "$p: prompt");

    # A second turn has the first in it, without its reasoning.

    $b->fill($p, '#text', 'script: tokens=2');
    $b->press($p, 'Enter');
    waits($b, $p, 'document.querySelectorAll(".assistant:not(.runs)").length '
          . '=== 2', "$p: a second turn");
    ($s) = reverse $t->submits();
    is("$s->{messages} $s->{message2}", '4 w1 w2 w3 w4 w5 w6 w7 w8 w9',
       "$p: with the first");

    # HTML, code and what is not closed.

    my $said = 'a <b onclick=x>no</b> `co<de` **bold** '
        . "\n```c\nint <i>x</i>;\n```\nend ```";
    my $coded = join '', map { sprintf '%%%02X', ord } split //, $said;
    $b->fill($p, '#max_tokens', '');
    $b->fill($p, '#text', "script: text=$coded");
    $b->press($p, 'Enter');
    waits($b, $p, '/end/.test([...document.querySelectorAll(".assistant")]'
          . '[2]?.innerText)', "$p: marked up");
    is($b->eval($p, '[...document.querySelectorAll(".assistant pre")].pop()'
                . '.innerText'), 'int <i>x</i>;', "$p: a block of code");
    is($b->eval($p, '[...document.querySelectorAll(".assistant span > code")]'
                . '.pop().innerText'), 'co<de', "$p: code in a line");
    is($b->eval($p, 'document.querySelectorAll(".assistant b[onclick], '
                . '.assistant i").length'), 0, "$p: no HTML");

    # Stop frees the sequence, and the page goes on.

    $b->fill($p, '#text', 'script: tokens=100000 delay=20');
    $b->press($p, 'Enter');
    waits($b, $p, '/w5/.test([...document.querySelectorAll(".assistant")]'
          . '.pop().innerText)', "$p: a long answer");
    ok($b->click($p, '#stop'), "$p: stop");
    ok($t->wait_for(sub { $t->events() =~ /^finish .*reason=cancelled/m }),
       "$p: stop frees the sequence");
    waits($b, $p, '/ended stopped/.test([...document.querySelectorAll('
          . '".stats")].pop().innerText)', "$p: it says so");

    # Errors are shown; what was not answered is not asked again.

    $b->fill($p, '#text', 'script: error=queue message=too%20much');
    $b->press($p, 'Enter');
    waits($b, $p, '/too much/.test(document.querySelector(".error")'
          . '?.innerText)', "$p: an error");
    $b->fill($p, '#text', 'script: tokens=30 fail_after=3 message=half');
    $b->press($p, 'Enter');
    waits($b, $p, '[...document.querySelectorAll(".error")].length === 2',
          "$p: an error in a stream");
    $b->fill($p, '#temperature', '9');
    $b->fill($p, '#text', 'x');
    $b->press($p, 'Enter');
    waits($b, $p, '/temperature/.test([...document.querySelectorAll('
          . '".error")][2]?.innerText)', "$p: a bad parameter");
    $b->fill($p, '#temperature', '');

    $b->click($p, '#clear');
    is($b->eval($p, 'document.querySelectorAll(".turn").length'), 0,
       "$p: a new chat");
    $b->click($p, '.hello button');
    waits($b, $p, '/falcon/.test(document.querySelector(".assistant:not('
          . '.runs)")?.innerText)', "$p: a suggestion");
    ($s) = reverse $t->submits();
    is($b->eval($p, 'document.querySelectorAll(".turn").length'), 2,
       "$p: it is the first turn");

    policy($b, $p, $p);
    $b->close($p);
}

# A server that asks for a key: kept for the tab, and nowhere else.

sub keys_asked {
    my ($b) = @_;
    my $p = 'keys';

    $b->open($p, url => "$base/desk/");
    waits($b, $p, 'document.querySelector("#model").innerText === "no models"',
          "$p: none without one");
    $b->fill($p, '#text', 'script: tokens=1');
    $b->press($p, 'Enter');
    waits($b, $p, '/Authentication/.test(document.querySelector(".error")'
          . '?.innerText)', "$p: asked for");
    $b->fill($p, '#key', 'good');
    $b->press($p, 'Tab');
    waits($b, $p, 'document.querySelectorAll("#model option").length === 2',
          "$p: models with one");
    $b->fill($p, '#text', 'script: tokens=2');
    $b->press($p, 'Enter');
    waits($b, $p, '/w2/.test(document.querySelector("#talk").innerText)',
          "$p: an answer with one");
    is($b->eval($p, 'document.querySelector("#key").type'), 'password',
       "$p: not shown");
    is($b->eval($p, 'localStorage.length + document.cookie.length'), 0,
       "$p: stored in the tab only");
    is($b->eval($p, 'location.href'), "$base/desk/", "$p: not in the address");
    $b->close($p);
}

sub status {
    my ($b) = @_;
    my $p = 'status';

    $b->open($p, url => "$base/status");
    waits($b, $p, q{document.querySelector("#pill").innerText === "live"},
          "$p: live");

    for (1 .. 20) {
        $t->request('POST', $chat, { messages => [ { role => 'user', content =>
            'script: tokens=20 prefill=60 delay=3 prompt_tokens=10 cached=9' }
        ] });
    }
    $t->request('POST', $chat, { n => 0 });

    waits($b, $p, 'document.querySelector("#rate").innerText >= 20',
          "$p: requests");
    waits($b, $p, 'document.querySelector("#failed").innerText === '
          . '"1 of them failed"', "$p: and what failed");
    waits($b, $p, '/^\d/.test(document.querySelector("#out").innerText)',
          "$p: speed");
    waits($b, $p, '/^[6-9]\d ms/.test(document.querySelector("#ttft-p50")'
          . '.innerText)', "$p: time to the first token, of the last minute");
    waits($b, $p, 'document.querySelector("#ttft-when").innerText '
          . '=== "last minute"', "$p: and which it is");
    like(text($b, $p, '#tpot-p50'), qr/^[2-9](?:\.\d)? ms/,
         "$p: time per token");
    is(text($b, $p, '#chips') =~ s/\s+/ /gr =~ s/^ | $//gr =~ s/(\d{3}) /$1 /gr
       =~ /\b400 ?\d+/ ? 1 : 0, 1, "$p: answers by status");
    like(text($b, $p, '#hit-note'), qr/last minute/, "$p: cache");

    my $c = $t->connect();
    $t->send_request($c, 'POST', $chat, { stream => $true, messages => [
        { role => 'user', content => 'script: tokens=100000 delay=5' } ] });
    waits($b, $p, 'document.querySelector("#running").innerText === "1"',
          "$p: running");
    waits($b, $p, '+document.querySelector("#out").innerText > 20',
          "$p: tokens as they come");
    ok($b->eval($p, q{ [...document.querySelectorAll("#ranks canvas")].every(
        c => [...c.getContext("2d").getImageData(0, 0, c.width, 1).data]
             .some(v => v)) }), "$p: the heat map is drawn");
    close $c->{sock};
    policy($b, $p, $p);
    $b->shot($p, 'status-busy');

    # Money, where there is some.

    $t->request('POST', "/paid$chat", { messages => [ { role => 'user',
        content => 'script: batch=16 tokens=30000 prompt_tokens=30000' } ] });
    waits($b, $p, q{document.querySelector("#revenue").innerText === "$0.18"},
          "$p: revenue");
    is($b->eval($p, 'document.querySelector("#cost-box").hidden'), $true,
       "$p: no cost where none is known");
    $b->open('cost', url => "$base/cost");
    waits($b, 'cost', q{document.querySelector("#profit").innerText}, 'profit');
    like(text($b, 'cost', '#cost'), qr/^\$\d/, 'cost');
    $b->shot('cost', 'status-cost');
    $b->close('cost');

    # The engine goes and comes back; nginx too.

    $t->stop('engine');
    waits($b, $p, q{document.querySelector("#pill").innerText === "e is down"},
          "$p: an engine is down");
    $t->engine('scripted', '--ranks', 64, '--model', $name);
    waits($b, $p, q{document.querySelector("#pill").innerText === "live"},
          "$p: another one");
    waits($b, $p, 'document.querySelectorAll("#ranks tr").length === 64',
          "$p: with its ranks");
    $b->shot($p, 'status-64');

    $t->reload(drain => 1);
    waits($b, $p, q{document.querySelector("#pill").innerText === "live"},
          "$p: after a reload");
    $b->close($p);
}
