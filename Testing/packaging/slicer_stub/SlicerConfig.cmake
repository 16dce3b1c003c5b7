# Stands in for the build tree of Slicer 5.12: the folders, the names of its files, and in
# UseSlicer.cmake the rules by which it copies and installs scripted modules. Nothing is compiled.
set(Slicer_VERSION 5.12.4)
set(Slicer_LIB_DIR lib/Slicer-5.12)
set(Slicer_QTSCRIPTEDMODULES_LIB_DIR ${Slicer_LIB_DIR}/qt-scripted-modules)
# On macOS Slicer puts the folder of its bundle before it.
set(Slicer_INSTALL_ROOT "" CACHE STRING "Prefix of what is installed")
set(Slicer_INSTALL_QTSCRIPTEDMODULES_LIB_DIR
  ${Slicer_INSTALL_ROOT}${Slicer_QTSCRIPTEDMODULES_LIB_DIR})
set(Slicer_LAUNCHER_EXECUTABLE Slicer CACHE STRING "Program that runs the tests")

set(Slicer_USE_FILE ${CMAKE_CURRENT_LIST_DIR}/UseSlicer.cmake)
set(Slicer_EXTENSION_GENERATE_CONFIG ${CMAKE_CURRENT_LIST_DIR}/ExtensionGenerateConfig.cmake)
set(Slicer_EXTENSION_CPACK ${CMAKE_CURRENT_LIST_DIR}/ExtensionCPack.cmake)
