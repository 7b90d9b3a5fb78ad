"""Stage two: shards -> batches -> a trained image encoder.

the road        cli, recipe (template writes it), setup, loop, step; before it dryrun and memory, after it export
a batch         plan, which samples; data and augment, their two views; ahead, tars fetched early; bad_images
the loss        block, who is how similar; pairs, who is listed; table, the graph, which ranks share; clip with text
                loss; on a GPU fused, fused_targets, parts
the network     model, own (a file of the user's), optim
several ranks   launch, world, agree, collectives, signals
what is kept    run_folder, names, described; checkpoint, saver; metrics, trackers, clock
how it goes     monitor, advice
"""
