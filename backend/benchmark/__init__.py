"""`backend benchmark`: does a pretraining pay, with how many labels, and can anyone check it?"""
