"""What tests share: tiny models and datasets, oracles, the fakes of servers, programs that tests start."""
