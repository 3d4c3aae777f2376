"""The DNA world: a grammar of short enhancers, its activity formula, small models trained on it.

    grammar     sequences of 100 letters: a second-order background with sites of six factors
    activity    the formula that says how active a sequence is, and how accessible
    statistics  3-mers, sites, GC content, longest run
    oracles     convolutional networks that predict activity and accessibility
    base        a masked diffusion model of the sequences (`EsmForMaskedLM`)
    pretrain    trains all of them: `python -m ddpo.models.dna.pretrain --stage all`

A toy with the shape of the DRAKES paper's task (Wang et al. 2024, arXiv 2410.13643); README.md says
more.
"""
