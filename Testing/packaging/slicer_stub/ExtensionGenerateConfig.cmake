# What other extensions read; one of scripted modules alone has nothing to tell them.
