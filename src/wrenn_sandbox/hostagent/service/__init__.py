"""HostAgentService: each module answers the calls of one subject; ``service`` puts them together."""
