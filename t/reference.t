#!/usr/bin/perl

# README's reference is complete and true: every directive and variable of the
# module is there, and nginx accepts each directive where README says, and
# nowhere else.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::Bin/lib";

use Test::LLM;
use Test::More;

my $t = Test::LLM->new();
my $top = Test::LLM::top();
my $readme = $t->read_file("$top/README.md");
my $source = join '', map { $t->read_file($_) } glob "$top/src/*.c";

# The command tables.

my %table;
while ($source =~ /\{\s*ngx_string\("(llm_\w+)"\),\s*(NGX_[A-Z0-9_|\s]+),/g) {
    my ($name, $flags) = ($1, $2);
    next if $flags !~ /_CONF/;
    ok(!$table{$name}, "$name: one table has it");
    $table{$name} = { map { $_ => 1 } split /[|\s]+/, $flags };
}
cmp_ok(scalar keys %table, '>=', 10, 'tables are found');

# The reference: Syntax (one or more), Default, Context.

my %doc;
while ($readme =~ /^\ {4}Syntax:\ \ (.*?)\n
                   \ {4}Default:\ (.*?)\n
                   \ {4}Context:\ (.*?)\n\n(\S.*?)\n\n/gsmx)
{
    my ($syntax, $default, $context, $text) = ($1, $2, $3, $4);
    my ($name) = $syntax =~ /^(\w+)/;

    ok(!$doc{$name}, "$name: one entry");
    $doc{$name} = { syntax => $syntax, default => $default,
                    contexts => [ split /,\s*/, $context ], text => $text };
}

is(join(' ', sort keys %doc), join(' ', sort keys %table),
   'the reference has every directive, and no other');

my @contexts = (
    [ 'http', 'NGX_HTTP_MAIN_CONF', '%s' ],
    [ 'server', 'NGX_HTTP_SRV_CONF', 'server { %s }' ],
    [ 'location', 'NGX_HTTP_LOC_CONF', 'server { location / { %s } }' ],
    [ 'if in location', 'NGX_HTTP_LIF_CONF',
      'server { location / { if ($uri) { %s } } }' ],
    [ 'limit_except', 'NGX_HTTP_LMT_CONF',
      'server { location / { limit_except GET { %s } } }' ],
    [ 'upstream', 'NGX_HTTP_UPS_CONF',
      'upstream u { server 127.0.0.1; %s }' ],
);

# What `nginx -t` says of a directive there, in an nginx that has an engine.

sub try {
    my ($where, $text) = @_;
    return $t->config_test('llm_engine reference unix:/tmp/none.sock; '
                           . sprintf $where, $text);
}

for my $name (sort keys %doc) {
    my $d = $doc{$name};
    my $flags = $table{$name} // next;
    my (@table, @real);

    for (@contexts) {
        my ($context, $flag, $where) = @$_;
        my ($ok, $out) = try($where, "$name;");

        push @table, $context if $flags->{$flag};
        push @real, $context if $out !~ /"$name" directive is not allowed here/;
    }

    is(join(', ', @{ $d->{contexts} }), join(', ', @table),
       "$name: contexts, as in the table");
    is(join(', ', @real), join(', ', @table),
       "$name: contexts, as nginx has it");

    # Each way to write it is of this directive and ends.

    my @forms = map { s/\s+/ /gr } $d->{syntax} =~ /\s*(.*?);/gs;
    is(join(' ', grep { !/^$name\b/ } @forms), '', "$name: its own syntax");
    is(!!(grep { /^$name on \| off$/ } @forms), !!$flags->{NGX_CONF_FLAG},
       "$name: a flag or not");
    ok($flags->{NGX_CONF_NOARGS} || grep({ $flags->{$_} } qw/ NGX_CONF_ANY
       NGX_CONF_TAKE12 NGX_CONF_TAKE123 NGX_CONF_TAKE1 NGX_CONF_TAKE2
       NGX_CONF_TAKE3 NGX_CONF_TAKE23 NGX_CONF_TAKE13 NGX_CONF_TAKE1234
       NGX_CONF_TAKE34 NGX_CONF_TAKE4 NGX_CONF_1MORE NGX_CONF_2MORE
       NGX_CONF_FLAG /), "$name: arguments");

    # The default, written out, is accepted.

    if ($d->{default} eq "\xe2\x80\x94") {
        pass("$name: no default");

    } elsif ($d->{default} =~ /^$name (.*);$/) {
        my ($where) = map { $_->[2] } grep { $_->[0] eq $d->{contexts}[-1] }
                      @contexts;
        my ($ok, $out) = try($where, $d->{default});
        ok($ok, "$name: the default is accepted") or diag($out);

    } else {
        fail("$name: a default or none");
    }

    like($d->{text}, qr/^[A-Z][a-z]+s\b/, "$name: says what it does");
}

# Variables: what nginx knows is in a table of README's, and the reverse.

my %in_readme;
$in_readme{$1}++ while $readme =~ /^\| ((?:`\$llm_\w+`(?:, )?)+) \|/gm;
%in_readme = map { $_ => 1 } map { /\$(llm_\w+)/g } keys %in_readme;
my %names = map { $_ => 1 } $source =~ /"(llm_[a-z_]+)"/g;
my @known;

for my $name (sort keys %{ { %names, %in_readme } }) {
    my ($ok, $out) = $t->config_test("log_format x '\$$name'; "
                                     . 'access_log logs/x x;');
    push @known, $name if $out !~ /unknown "$name" variable/;
}

is(join(' ', sort keys %in_readme), join(' ', @known),
   'the reference has every variable, and no other');
cmp_ok(scalar @known, '>=', 10, 'variables are found');

$t->done(allow => qr/\[emerg\]/);
done_testing();
