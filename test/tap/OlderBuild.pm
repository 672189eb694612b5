
=head1 NAME

OlderBuild - a build of the extension that speaks an older version of the protocol, and instances that run it

=head1 SYNOPSIS

  my $older = OlderBuild->new;                   # frames of version 2; OlderBuild->new(frame_version => 3): of version 3
  my $cluster = QuorumCluster->new(nodes => 3, form => 0);
  $older->prepare($_) foreach $cluster->nodes;   # may run either build from now on
  $older->install($node);                        # stops the node, and starts it with the older build
  $older->remove($node);                         # and with the newer one again

=head1 DESCRIPTION

The older build comes from the same sources, with the newest version set by -D.  QUORUM_OLDER_BUILD names a folder with a
pg_quorum.so that is taken instead, say, of the release before this one. C<< OlderBuild->new(macros => '-D...') >> makes
one that differs in something else, say, in how much it remembers.

Which library an instance loads is decided by its dynamic_library_path; for that the functions name the library without a path.

=cut

package OlderBuild;

use strict;
use warnings;

use Cwd;
use IPC::Run;
use PostgreSQL::Test::Utils;

sub new
{
	my ($class, %options) = @_;
	my $frame_version = $options{frame_version} || 2;
	return bless { folder => _build($options{macros}) }, $class if $options{macros};
	return bless { folder => $ENV{QUORUM_OLDER_BUILD} || _build("-DPAXOS_NEWEST_FRAME_VERSION=$frame_version -DTRANSPORT_NEWEST_VERSION=" . ($frame_version - 1) . " -DSNAPSHOT_NEWEST_VERSION=1") }, $class;
}

sub _build
{
	my ($macros) = @_;
	my $folder = PostgreSQL::Test::Utils::tempdir('older');
	my $sources = getcwd();
	foreach my $command (
		[ 'cp', '-r', "$sources/src", "$sources/sql", "$sources/Makefile", "$sources/pg_quorum.control", $folder ],
		[ 'find', "$folder/src", '-name', '*.o', '-delete' ],
		[ 'make', '-s', '-j2', '-C', $folder, 'all', "COPT=$macros" ])
	{
		my $output = '';
		IPC::Run::run($command, '<', '/dev/null', '>&', \$output) or die "@$command failed: $output\n";
	}
	return $folder;
}

sub prepare
{
	my ($self, $node) = @_;
	$node->sql(q{SET allow_system_table_mods = on; UPDATE pg_proc SET probin = 'pg_quorum' WHERE probin = '$libdir/pg_quorum'});
	return;
}

sub _restart_with
{
	my ($self, $node, $path) = @_;
	$node->stop('fast') if $node->is_running;
	$node->append_conf('postgresql.conf', "dynamic_library_path = '$path'");
	$node->start;
	return;
}

sub install { my ($self, $node) = @_; $self->_restart_with($node, "$self->{folder}:\$libdir"); return; }
sub remove { my ($self, $node) = @_; $self->_restart_with($node, '$libdir'); return; }

1;
