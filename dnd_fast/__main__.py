from dnd_fast.cli import main

main()
