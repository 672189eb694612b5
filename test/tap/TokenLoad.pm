
=head1 NAME

TokenLoad - nodes that remember 1024 tokens, and transactions that fill that up

=head1 SYNOPSIS

  my $cluster = TokenLoad::cluster(nodes => 3, conf => ...);   # with a table t (id int PRIMARY KEY, v text)
  my $result = TokenLoad::put($node, 1, 700);   # tokens 'filler 1' to 'filler 700'; like QuorumNode::query
  TokenLoad::set($node, 'quorum.token_retention_age', '1h');
  my $remembered = TokenLoad::memory($node, 'remembered');     # of quorum.token_memory

=cut

package TokenLoad;

use strict;
use warnings;

use OlderBuild;
use QuorumCluster;

sub cluster
{
	my (%options) = @_;
	my $build = OlderBuild->new(macros => '-DCERTIFIER_TOKEN_CAPACITY=1024u');
	my $cluster = QuorumCluster->new(%options, form => 0);
	foreach my $node ($cluster->nodes)
	{
		$build->prepare($node);
		$build->install($node);
	}
	$cluster->form;
	$cluster->wait_for_leader->sql(q{CREATE TABLE t (id int PRIMARY KEY, v text); SELECT quorum.replicate('t')});
	$cluster->wait_applied;
	return $cluster;
}

sub transaction { my ($token, $id, $v) = @_; return "BEGIN; SET LOCAL quorum.token = '$token'; INSERT INTO t VALUES ($id, '$v'); COMMIT;"; }

sub put
{
	my ($node, $first, $last) = @_;
	return $node->query(join("\n", map { transaction("filler $_", 10_000 + $_, 'filler') } $first .. $last), timeout => 120);
}

sub set
{
	my ($node, $name, $value) = @_;
	$node->sql("ALTER SYSTEM SET $name = '$value'");
	$node->sql('SELECT pg_reload_conf()');
	QuorumCluster::wait_until("$name to be $value", sub { $node->sql("SELECT current_setting('$name') = '$value'") eq 't' });
	return;
}

sub memory { my ($node, $column) = @_; return $node->sql("SELECT $column FROM quorum.token_memory"); }

1;
