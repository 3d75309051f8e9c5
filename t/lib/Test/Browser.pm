package Test::Browser;

# Debian's Chromium behind playwright-core (tests/browser.mjs).
#
#   my $why = Test::Browser->missing();         what is not there, or ''
#   my $b = Test::Browser->new();
#   $b->open('page', url => $url, scheme => 'dark');
#   $b->wait('page', 'document.title !== ""') or diag($b->{error});
#   $b->eval('page', 'location.href');
#
# With SHOTS=DIR in the environment shot() writes DIR/NAME.png.

use strict;
use warnings;

use IPC::Open2;
use JSON::PP;
use Test::LLM;

my $json = JSON::PP->new->utf8->canonical->allow_nonref;

sub path {
    return (grep { -x } map { ("$_/chromium", "$_/chromium-browser") }
            split /:/, $ENV{PATH})[0];
}

sub missing {
    return 'no chromium' if !path();
    return 'no playwright-core'
        if !-e Test::LLM::top() . '/tests/node_modules/playwright-core';
    return '';
}

# Packages are found from the file that asks for them, upwards.

sub new {
    my ($class) = @_;
    my $self = bless { owner => $$ }, $class;
    my $top = Test::LLM::top();

    $self->{pid} = open2($self->{out}, $self->{in}, Test::LLM::node(),
                         "$top/tests/browser.mjs", path());
    return $self;
}

sub tell {
    my ($self, $verb, $page, %more) = @_;

    local $SIG{PIPE} = 'IGNORE';
    syswrite $self->{in}, $json->encode({ do => $verb, page => $page, %more })
                          . "\n";
    my $line = readline $self->{out};
    my $r = defined $line ? $json->decode($line) : { error => 'it ended' };

    $self->{error} = $r->{error};
    return $r->{value};
}

sub open { shift->tell('open', @_) }
sub eval { $_[0]->tell('eval', $_[1], js => $_[2]) }
sub wait { $_[0]->tell('wait', $_[1], js => $_[2]) }
sub fill { $_[0]->tell('fill', $_[1], at => $_[2], text => $_[3]) }
sub click { $_[0]->tell('click', $_[1], at => $_[2]) }
sub press { $_[0]->tell('press', $_[1], key => $_[2]) }
sub log { $_[0]->tell('log', $_[1]) }
sub close { $_[0]->tell('close', $_[1]) }

sub shot {
    my ($self, $page, $name) = @_;

    return 1 if !defined $ENV{SHOTS};
    return $self->tell('shot', $page, path => "$ENV{SHOTS}/$name.png");
}

sub DESTROY {
    my ($self) = @_;

    return if $$ != $self->{owner} || !$self->{pid};
    local $?;
    CORE::close $self->{in};
    waitpid $self->{pid}, 0;
}

1;
